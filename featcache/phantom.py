"""Synthetic chest radiographs for ``make demo`` and the tests: no patient ever stood before this film.

A phantom is a sum of shadows, as a radiograph is: body, less the air of the lungs, plus heart, bones and
vessels, put through a film's curve and grain. Pneumonia is one or two soft, mottled patches that fill air and
touch nothing else, so the classes differ by them alone and their place is known. Drawing is done in body
units: ``x`` to the image's right, ``y`` down, the frame spans about [-1, 1] in both; the patient faces us.
"""

from __future__ import annotations

import cmath
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from featcache import atomic
from featcache.errors import DataError

Field = npt.NDArray[np.floating]  # float32, one value a pixel; [size, size] unless said otherwise
Pixels = npt.NDArray[np.uint8]
Rng = np.random.Generator
_Pose = tuple[complex, complex]  # shift, turn

FORMAT_VERSION = 1  # raise it when a pixel changes: then folders written before are refused
DESCRIPTION = "synthetic phantom, not a patient"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lesion:
    """One consolidation, in pixels of the written image."""

    row: float  # of its centre, from the top
    column: float  # of its centre, from the left
    radius: float  # where its soft edge has ended
    opacity: float  # share of the lung air filled at its densest, 0 to 1


def phantom(
    seed: int, *, size: int = 256, lesion: bool, shift: bool = False, patient_seed: int | None = None
) -> tuple[Pixels, tuple[Lesion, ...]]:
    """Draw one synthetic chest radiograph, the same for the same arguments: [size, size] pixels and lesions.

    Args:
        seed: decides exposure, grain and the small changes of stance between a patient's films.
        size: edge of the square image in pixels, at least 64.
        lesion: whether there is pneumonia. Without it the rest of the film is the same, pixel for pixel.
        shift: another hospital's film, paler, flatter and noisier, as test is to train in the real set.
        patient_seed: decides anatomy and the lesions' place; ``seed`` where None.
    """
    if size < 64:  # the burnt-in mark could not be read
        raise ValueError(f"a phantom needs at least 64 px to be marked as synthetic, got size={size}")
    # A stream for each concern: drawing a lesion must not move the grain of the film.
    person = seed if patient_seed is None else patient_seed
    patient, trouble = (np.random.default_rng((person, stream)) for stream in (0, 1))
    film, grain = (np.random.default_rng((seed, stream)) for stream in (2, 3))
    body, pose = _Body(patient), _pose(patient, film)
    half = (size + 1) // 2  # nothing but vessels and grain is sharp: half the resolution does
    line = (np.arange(half, dtype=np.float32) * 2 + 1) / half - 1
    z = (line + 1j * line[:, None] - pose[0]) / pose[1]
    x, y = np.ascontiguousarray(z.real), np.ascontiguousarray(z.imag)
    air = _lungs(body, x, y)
    shadow: Field = _soft_tissue(body, x, y) + _bones(body, x, y, air)
    lesions = tuple(_fill(air, x, y, body, pose, trouble, size)) if lesion else ()
    shadow, air = _resized(shadow - 0.50 * air, size), _resized(air, size)
    shadow += air * (_vessels(body, pose, patient, size) + 0.05 * _clouds(patient, size, 7))
    return _developed(shadow, film, grain, shift=shift), lesions


def write_phantoms(
    folder: Path,
    *,
    train: int = 320,
    val: int = 16,
    test: int = 120,
    pneumonia_share: float = 0.74,
    size: int = 256,
    seed: int = 0,
) -> Path:
    """Write a data set laid out and named like the real one; where the same one lies already, leave it be.

    ``train``, ``val`` and ``test`` count images, ``size`` is their edge in pixels, ``pneumonia_share`` is
    train's; val has 50 % and test 62.5 % as the real set has, and test is drawn with ``shift``. Some patients
    have several films. ``lesions.json`` maps each image id to its lesions; ``README.txt`` begins with what
    was asked for. The folder appears whole or not at all, and is returned.

    Raises:
        DataError: if the folder exists and is anything but this very data set.
        WriteError: the disk is full or the place cannot be written.
    """
    if not 0 <= pneumonia_share <= 1:
        raise ValueError(f"pneumonia_share must lie within 0 and 1, got {pneumonia_share}")
    asked = f"cxr phantoms, format {FORMAT_VERSION}: {(train, val, test)=} {pneumonia_share=} {size=} {seed=}"
    if not folder.exists():
        try:
            with atomic.new_folder(folder) as new:
                _draw_all(new, _plan(train, val, test, pneumonia_share, seed), size, asked)
        except atomic.WriteError:
            if not folder.exists():
                raise
            # Another process was faster: judge what lies there.
    try:
        found = (folder / "README.txt").read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        found = "no README.txt of phantoms"
    if found != asked:
        what = f"{folder} exists and is not the phantoms asked for: wanted '{asked}', got '{found[:120]}'"
        raise DataError(f"{what}: name another folder, or move this one away")
    return folder


def _draw_all(folder: Path, plan: Iterator[tuple[str, int, int]], size: int, asked: str) -> None:
    """Draw the planned films into an empty folder, and beside them where their lesions are and what they are."""
    places: dict[str, list[dict[str, float]]] = {}
    exif = Image.Exif()
    exif[0x010E] = DESCRIPTION  # ImageDescription
    for image_id, number, person in plan:
        ill, shift = "PNEUMONIA" in image_id, image_id.startswith("test")
        pixels, lesions = phantom(number, size=size, lesion=ill, shift=shift, patient_seed=person)
        (folder / image_id).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / image_id, "JPEG", quality=90, comment=DESCRIPTION, exif=exif)
        places[image_id] = [dataclasses.asdict(lesion) for lesion in lesions]
    (folder / "lesions.json").write_text(json.dumps(places, indent=1) + "\n", encoding="utf-8")
    (folder / "README.txt").write_text(f"{asked}\n\nEvery image is a {DESCRIPTION}.\n", encoding="utf-8")


def _plan(train: int, val: int, test: int, share: float, seed: int) -> Iterator[tuple[str, int, int]]:
    """Give (image_id, image seed, patient seed), named as the real set is: test numbers its persons anew."""
    a, b, c = round(train * share), round(val * 0.5), round(test * 0.625)
    folders = [f"{split}/{label}" for split in ("train", "val", "test") for label in ("NORMAL", "PNEUMONIA")]
    counts, starts = (train - a, a, val - b, b, test - c, c), (115, 1, 1427, 1946, 1, 1)
    for place, (folder, wanted, start) in enumerate(zip(folders, counts, starts, strict=True)):
        first, image, person = (6 * seed + place) * 1_000_000, 0, start  # a million seeds a folder
        rng = np.random.default_rng((first, 4))
        while image < wanted:
            series = "NORMAL2-" if "val" in folder or rng.random() < 0.5 else ""
            germ = "bacteria" if rng.random() < 0.65 else "virus"
            for film in range(1, 1 + min(rng.choice((1, 2, 3), p=(0.7, 0.2, 0.1)), wanted - image)):
                healthy, ill = f"{series}IM-{person:04d}-{film:04d}", f"person{person}_{germ}_{start + image}"
                yield f"{folder}/{healthy if 'NORMAL' in folder else ill}.jpeg", first + image, first + person
                image += 1
            person += 1


class _Body:  # what a patient keeps from film to film
    def __init__(self, rng: Rng) -> None:
        self.breadth = rng.uniform(0.66, 0.76)  # half of the thorax
        self.wall = self.breadth + rng.uniform(0.10, 0.17)  # with muscle and fat
        self.apex, self.base = rng.uniform((-0.78, 0.36), (-0.68, 0.50)).tolist()  # y of tips, diaphragm
        self.heart, self.heart_y = rng.uniform((0.29, 0.17), (0.37, 0.25)).tolist()  # half length, centre
        self.drop = rng.uniform(0.02, 0.08)  # how much lower the diaphragm lies below the heart
        self.rib_gap, self.rib_phase, self.rib_slope = rng.uniform((0.135, 0, 0.7), (0.165, 1, 1.1)).tolist()
        self.collar = rng.uniform(-0.56, -0.48)  # y of the inner ends of the clavicles
        self.gas = max(0.0, rng.uniform(-0.15, 0.2))  # in the stomach, as it darkens the film


def _pose(patient: Rng, film: Rng) -> _Pose:
    """Stance, mostly the patient's: body point ``z = x + iy`` falls on ``shift + turn · z`` of the frame."""
    x, y, scale, angle = (patient.normal(size=4) + 0.35 * film.normal(size=4)).tolist()
    return complex(0.03 * x, 0.04 + 0.03 * y), cmath.rect(1.02 + 0.025 * scale, 0.025 * angle)


def _pixel(pose: _Pose, x: float, y: float, size: int) -> tuple[float, float]:
    """Give (row, column) of a point of the body."""
    z = (pose[0] + pose[1] * complex(x, y) + 1 + 1j) * size / 2
    return z.imag - 0.5, z.real - 0.5


def _edge(distance: Field, width: float) -> Field:
    """Rise smoothly from 0 to 1 where a signed distance passes through 0, within ``width``."""
    t = np.clip(distance * (1 / width) + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _resized(field: Field, size: int) -> Field:
    return np.array(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))


def _clouds(rng: Rng, size: int, cells: int) -> Field:
    """Smooth noise of mean 0 and deviation near 1, in lumps of ``size / cells`` pixels."""
    return _resized(rng.standard_normal((cells, cells), dtype=np.float32), size)


def _cage(body: _Body, x: Field, y: Field) -> tuple[Field, Field]:
    """Give the lungs' reach from the midline at each height, and the height of the diaphragm's two domes."""
    up = np.clip((body.base - y) / (body.base - body.apex), 0, 1)
    dome = body.base + body.drop * np.heaviside(x, 0) + 0.95 * np.square(np.abs(x) - 0.33)
    return np.asarray(body.breadth * np.sqrt(1 - up**2.6) * (0.95 + 0.05 * up)), np.asarray(dome)


def _heart(body: _Body, x: Field, y: Field) -> Field:
    """The heart, its axis down to the image's right, with aortic knob and lung artery above it, 0 to 1."""
    u, v = x - 0.11, y - body.heart_y
    along, across = (0.88 * u + 0.47 * v) / (body.heart + 0.04), (0.88 * v - 0.47 * u) / (0.8 * body.heart)
    heart = _edge(1 - np.hypot(along, across), 0.22)
    knob = _edge(1 - np.hypot((x - 0.08) / 0.114, (y + 0.25) / 0.143), 0.6)
    artery = _edge(0.19 - x, 0.08) * _edge(x, 0.05) * _edge(0.22 - np.abs(y + 0.08), 0.12)
    return np.asarray(np.maximum.reduce([heart, knob, artery]))


def _lungs(body: _Body, x: Field, y: Field) -> Field:
    """Share of air in the path of the ray, 0 to 1: less at the hila, little behind the heart."""
    a, (flank, dome) = np.abs(x), _cage(body, x, y)
    inner = 0.12 + 0.10 * np.clip(-0.1 - y, 0, 1) ** 2 + 0.02 * np.clip(y, 0, 1)
    lung = _edge(flank - a, 0.06) * _edge(a - inner, 0.08) * _edge(dome - y, 0.05)
    hilum = 0.30 * _edge(1 - np.hypot((a - 0.17) / 0.10, (y + 0.02) / 0.17), 1.0)
    return np.asarray(lung * (1 - hilum) * (1 - 0.88 * _heart(body, x, y)))


def _soft_tissue(body: _Body, x: Field, y: Field) -> Field:
    """Neck, shoulders, arms, chest wall, heart and belly, as if there were no lungs."""
    a = np.abs(x)
    shoulder = -0.68 - 0.30 * np.exp(-3.2 * np.clip(a - 0.2, 0, 1)) + 0.25 * np.square(np.clip(a - 0.7, 0, 1))
    side = body.wall + 0.25 * np.clip(-0.25 - y, 0, 1) + 0.03 * y
    trunk = _edge(side - a, 0.05) * np.maximum(_edge(y - shoulder, 0.06), _edge(0.23 - a, 0.06))
    arm = _edge(0.14 - np.abs(a - 0.99 - 0.05 * y), 0.05) * _edge(y - shoulder - 0.05, 0.08)
    depth = 0.55 + 0.20 * np.clip(1 - np.square(a / body.wall), 0, 1) + 0.07 * _heart(body, x, y)
    depth += 0.07 * _edge(y - _cage(body, x, y)[1], 0.10)
    depth -= body.gas * _edge(1 - np.hypot((x - 0.34) / 0.16, (y - body.base - 0.19) / 0.08), 0.4)
    depth -= 0.10 * _edge(0.045 - np.abs(x + 0.01), 0.04) * _edge(-0.22 - y, 0.1)  # the windpipe
    return np.asarray(np.maximum(trunk * depth, 0.55 * arm))


def _bones(body: _Body, x: Field, y: Field, air: Field) -> Field:
    """Spine, clavicles and ribs, which repeat at one distance: a periodic field behind, another before."""
    a = np.abs(x)

    def ribs(path: Field, half: float) -> Field:
        down = y - 0.1 * body.rib_phase * x - path  # a slight obliquity: pairs don't lie quite level
        inside = np.cos((down / body.rib_gap + body.rib_phase) * (2 * math.pi)) - math.cos(math.pi * half)
        return np.asarray(_edge(inside, 0.7) * (1 + 0.6 * _edge(0.35 - np.abs(inside - 0.1), 0.4)))  # cortex

    behind = ribs(body.rib_slope * np.square(a - 0.2), 0.36) * _edge(a - 0.10, 0.05)
    before = ribs(0.62 * (body.breadth - a) + 0.4 * np.square(a - 0.3), 0.42) * _edge(a - 0.33, 0.2)
    cage = _edge(_cage(body, x, y - 0.03)[0] + 0.035 - a, 0.04) * _edge(0.66 - y, 0.3)
    collar = np.abs(y - body.collar + 0.26 * (a - 0.1) - 0.05 * np.sin(8 * (a - 0.1)))
    clavicle = 0.085 * _edge(0.028 - collar, 0.024) * _edge(a - 0.09, 0.04) * _edge(0.80 - a, 0.06)
    disc = np.cos(y * (2 * math.pi / (0.95 * body.rib_gap)) + 6 * body.rib_phase)
    spine = _edge(0.095 + 0.008 * disc - a, 0.03) * (0.07 + 0.022 * disc)
    seen = cage * (0.3 + 0.7 * air)  # scatter hides the ribs where the chest is dense
    return np.asarray(seen * (0.085 * behind + 0.036 * before) + clavicle + spine)


def _vessels(body: _Body, pose: _Pose, rng: Rng, size: int) -> Field:
    """Vessels that wander from the hila to the flanks, thinner and paler as they go."""
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    for side in (-1, 1) * 18:
        x, y, angle = side * rng.uniform(0.16, 0.21), rng.normal(-0.04, 0.1), rng.uniform(-1.25, 1.25)
        row, column = _pixel(pose, x, y, size)
        for far, bend in enumerate(rng.normal(0, 0.22, size=8).tolist()):
            angle = 0.97 * angle + bend
            x, y = x + side * body.breadth / 9 * math.cos(angle), y + body.breadth / 9 * math.sin(angle)
            start, (row, column) = (column, row), _pixel(pose, x, y, size)
            thick = max(1, round(size * (0.0133 - far / 512)))
            pen.line((*start, column, row), fill=round(210 * 0.8**far), width=thick)
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(size / 230)), dtype=np.float32) * (0.22 / 255)


def _fill(air: Field, x: Field, y: Field, body: _Body, pose: _Pose, rng: Rng, size: int) -> Iterator[Lesion]:
    """Take air away, in place, by one mottled patch with a ragged soft edge, sometimes two."""
    for _ in range(2 if rng.random() < 0.3 else 1):
        opacity, radius, clear = rng.uniform(0.72, 0.97), rng.uniform(0.28, 0.42), 0.0
        while clear < 0.75:  # the middle around it must be lung, or hardly any of it would show
            right, down = rng.uniform((-0.75, -0.7), (0.75, 0.55)).tolist()
            ring = 0.37 * radius * np.array([[0, 1, -1, 0, 0], [0, 0, 0, 1, -1]])
            clear = float(_lungs(body, right + ring[0], down + ring[1]).min())
        away = np.hypot(x - right, y - down) / radius
        ragged, mottle, fine = (_clouds(rng, len(air), cells) for cells in (15, 21, 50))
        patch = _edge(0.59 - away + 0.17 * ragged, 0.68) * np.clip(0.85 + 0.1 * mottle + 0.06 * fine, 0, 1)
        air *= 1 - opacity * patch * _edge(0.72 - away, 0.36)  # over at 0.9: enlarging smears by a pixel
        row, column = _pixel(pose, right, down, size)
        yield Lesion(row=row, column=column, radius=radius * abs(pose[1]) * size / 2, opacity=opacity)


def _developed(shadow: Field, film: Rng, grain: Rng, *, shift: bool) -> Pixels:
    """Turn shadow into grey: exposure, uneven beam, the film's curve, its grain, and what is burnt in."""
    size = len(shadow)
    line = np.linspace(-1, 1, size, dtype=np.float32)
    gain, lift, gamma, noise = film.uniform((0.92, -0.02, 0.95, 0.007), (1.10, 0.05, 1.25, 0.014)).tolist()
    if shift:
        gain, lift, gamma, noise = 0.96 * gain, lift + 0.03, 0.97 * gamma, 1.2 * noise
    light = gain * shadow * (1 + film.normal(0, 0.03) * line + film.normal(0, 0.03) * line[:, None]) + lift
    fine = grain.standard_normal(shadow.shape, dtype=np.float32)  # neighbours will share it: film has grains
    light = np.clip(light, 0, 1.3) ** gamma + noise * (fine + np.roll(fine, 1, 0) + np.roll(fine, 1, 1))
    image = Image.fromarray(np.clip(255 * light, 0, 255).astype(np.uint8))
    pen, font, spot = ImageDraw.Draw(image), ImageFont.load_default(max(9, size / 24)), (size / 2, size - 3)
    left, top, right, _ = pen.textbbox(spot, "SYNTHETIC", font, anchor="ms")
    pen.rectangle((left - 3, top - 3, right + 3, size), fill=16)  # so that it is the same on every film
    pen.text(spot, "SYNTHETIC", fill=230, font=font, anchor="ms")
    pen.text((0.94 * size, 0.06 * size), "L", fill=235, font=ImageFont.load_default(size / 12), anchor="rt")
    return np.array(image)
