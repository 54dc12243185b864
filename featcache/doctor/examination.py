"""The whole examination, and the checks that need no file of their own: interpreter, decoder, data set."""

from __future__ import annotations

import importlib.metadata
import io
import platform
import re
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np

from featcache.doctor.cache import cache_folder, space
from featcache.doctor.devices import devices, setting, torch_pair
from featcache.doctor.finding import Finding, guarded
from featcache.doctor.weights import weights
from featcache.errors import DataError
from featcache.settings import Settings

ANOTHER_DATA_SET = "name another folder with --data, or a table with --table"


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, and tell each finding as it is made; nothing that was not there before stays behind.

    The hub is asked for weights that are not here, for 5 seconds at most; nothing else leaves the machine.
    """
    yield from guarded("python", "make the environment anew: python3 -m venv .venv", interpreter)
    pair = list(guarded("torch", "install the two anew: pip install --upgrade torch torchvision", torch_pair))
    yield from pair
    sound = all(finding.state != "failed" for finding in pair)
    if sound:
        yield from guarded("device", setting("device", "auto"), partial(devices, settings))
    yield from guarded("decoder", "install them anew: pip install --force-reinstall pillow simplejpeg", decoder)
    yield from guarded("data", ANOTHER_DATA_SET, partial(data_set, settings))
    sizes: dict[str, int] = {}
    if sound:
        yield from guarded("weights", "give one --weights a --backbone", partial(weights, settings, sizes))
    else:
        yield Finding(
            checked="networks",
            state="warning",
            found="devices and weights were not looked at, since torch does not work",
            remedy="put torch right first, then run 'cxr doctor' again",
        )
    anywhere = "name another place with --cache DIR"
    yield from guarded("cache", anywhere, partial(cache_folder, settings.cache))
    yield from guarded("space", anywhere, partial(space, settings, sizes))


def interpreter() -> Iterator[Finding]:
    """The interpreter against ``requires-python``."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    try:
        wanted = importlib.metadata.metadata("cxr")["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        remedy = "install cxr rather than run it from its folder: pip install ."
        yield Finding(checked="python", state="warning", found=f"{found}; cxr is not installed", remedy=remedy)
        return
    least = tuple(map(int, re.findall(r"\d+", wanted)[:2]))
    if sys.version_info[:2] < least:
        remedy = f"make the environment anew with a Python {wanted}"
        yield Finding(checked="python", state="failed", found=f"{found}, wanted {wanted}", remedy=remedy)
    else:
        yield Finding(checked="python", found=f"{found} (wanted {wanted}), {platform.system()} {platform.machine()}")


def decoder() -> Iterator[Finding]:
    """A small picture as JPEG and as PNG, there and back.

    Raises:
        DataError: it comes back as another.
    """
    from PIL import Image

    from featcache.decode import DECODER, decode
    from featcache.dicom import dicom_decoder

    row, column = np.mgrid[:40, :56]
    picture = (2 * row + 3 * column).astype(np.uint8)
    for form, tolerance in (("JPEG", 4), ("PNG", 0)):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, form, quality=98)
        pixels = decode(file.getvalue())
        off = int(np.abs(pixels.astype(int) - picture).max()) if pixels.shape == picture.shape else 255
        if off > tolerance:
            raise DataError(f"a {form} decoded by {DECODER} is off by {off} of 255 grey levels")
    dicom = f"; DICOM is read too ({dicom_decoder()})" if dicom_decoder() else "; DICOM needs pip install 'cxr[dicom]'"
    yield Finding(checked="decoder", found=f"JPEG and PNG come back as they were ({DECODER}){dicom}")


def data_set(settings: Settings) -> Iterator[Finding]:
    """The images as folder or table name them, unread.

    Raises:
        DataError: there are none.
    """
    from featcache.workspace import image_table

    if settings.data is None and settings.table is None:
        yield Finding(checked="data", found="no data set named; with --data DIR it is looked at too")
        return
    table = image_table(settings)
    found = f"{len(table):,} images of {len(table.classes)} classes in {settings.table or settings.data}"
    yield Finding(checked="data", found=f"{found}; 'cxr data check' reads each")
