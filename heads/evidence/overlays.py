"""A film, and beside it the same film with the evidence for a class laid over it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import cm
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates

from featcache.decode import Pixels
from featcache.thumbnails import jpeg, shrunk
from featcache.views import Window

AGAINST, FOR = (0.0, 0.30, 0.72), (0.88, 0.35, 0.0)
"""Blue and orange: told apart by those who see no red or no green."""

MOST_OPAQUE = 0.75
"""What the strongest evidence hides of the film; the weaker it is, the less."""

DISCLAIMER = "research use, not a diagnosis"
PANEL, DPI = 4.6, 150  # inches, dots an inch


def laid_over(local: NDArray[np.floating], window: Window, height: int, width: int) -> NDArray[np.float32]:
    """Bring a map to the film's pixels, bilinearly: [height, width] float32, NaN where the network saw nothing.

    Args:
        local: [h, w], a value a cell; cells share the window evenly, and a value stands in the middle of its cell.
        window: what the map covers, in the film's pixels.
        height: the film's, in pixels.
        width: the film's, in pixels.
    """
    # Pixel r reaches from r to r + 1: its middle is r + 0.5, and that of cell i is i + 0.5.
    down = (np.arange(height) + 0.5 - window.top) / window.height
    across = (np.arange(width) + 0.5 - window.left) / window.width
    places = np.meshgrid(down * local.shape[0] - 0.5, across * local.shape[1] - 0.5, indexing="ij")
    film: NDArray[np.float32] = map_coordinates(local.astype(np.float32), places, order=1, mode="nearest")
    film[(down < 0) | (down > 1)] = np.nan
    film[:, (across < 0) | (across > 1)] = np.nan
    return film


def overlay_png(
    pixels: Pixels, local: NDArray[np.floating], window: Window, *, of_class: str, unit: str, lines: Sequence[str]
) -> bytes:
    """Draw film and overlay side by side; the same arguments give the same bytes.

    Args:
        pixels: [H, W] or [H, W, 3] uint8.
        local: [h, w], evidence a cell, 0 where a place speaks neither for the class nor against it.
        window: what the map covers, in the film's pixels.
        of_class: the class that positive values speak for.
        unit: what a value is.
        lines: heading, then what is written below in small.
    """
    height, width = pixels.shape[:2]
    tall = float(np.clip(PANEL * height / width, 2.4, 9.6))
    figure = Figure(figsize=(2 * PANEL + 1.2, tall + 1.0), layout="constrained")
    plain, covered = figure.subplots(1, 2)
    for axes in (plain, covered):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    film = laid_over(local, window, height, width)
    scale = Normalize(-(most := float(np.abs(local).max()) or 1.0), most)
    covered.imshow(film, cmap=colours(), norm=scale)
    if np.isnan(film).any():
        _frame(covered, window)
    bar = figure.colorbar(cm.ScalarMappable(scale, colours()), ax=covered, shrink=0.85)
    # A dollar sign in a file's or a class's name is no formula.
    small: dict[str, Any] = {"fontsize": 7.5, "parse_math": False}
    bar.set_label(f"← against {of_class}    for {of_class} →\n{unit}", **small)
    figure.suptitle(lines[0], fontsize=12, parse_math=False)
    figure.supxlabel("\n".join([*lines[1:], DISCLAIMER]), **small)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows boxes, and the film all the same.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def overlay_thumbnail(pixels: Pixels, local: NDArray[np.floating], window: Window, side: int = 160) -> bytes:
    """The film with the evidence laid over it as a small JPEG, its longer side at most ``side`` pixels.

    Args:
        pixels: [H, W] or [H, W, 3] uint8.
        local: [h, w], evidence a cell, as for ``overlay_png``.
        window: what the map covers, in the film's pixels.
        side: pixels.
    """
    small = shrunk(pixels, side).convert("RGB")
    down, across = small.height / pixels.shape[0], small.width / pixels.shape[1]
    seen = Window(
        top=window.top * down, left=window.left * across, height=window.height * down, width=window.width * across
    )
    most = float(np.abs(local).max()) or 1.0
    rgba = colours()(Normalize(-most, most)(np.ma.masked_invalid(laid_over(local, seen, small.height, small.width))))
    opacity = rgba[..., 3:]
    mixed = np.asarray(small) * (1 - opacity) + 255 * rgba[..., :3] * opacity
    return jpeg(Image.fromarray(np.rint(mixed).astype(np.uint8)), coloured=True)


def colours() -> ListedColormap:
    """From ``AGAINST`` through clear to ``FOR``; what is NaN stays clear."""
    strength = np.linspace(-1, 1, 255)[:, None]
    rgb = np.where(strength < 0, AGAINST, FOR)
    # What is NaN matplotlib leaves clear by itself.
    return ListedColormap(np.concatenate([rgb, MOST_OPAQUE * np.abs(strength)], axis=1))


def _frame(axes: Axes, window: Window) -> None:
    """Show where the network's square ends."""
    corner = (window.left - 0.5, window.top - 0.5)
    frame = Rectangle(corner, window.width, window.height, fill=False, edgecolor="white", linewidth=0.8, linestyle=":")
    axes.add_patch(frame)
