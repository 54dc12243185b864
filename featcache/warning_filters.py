"""Warnings of the decoders, handled alike in all threads for as long as any of them decodes.

Warning filters are one for all threads, and leaving a filter restores what stood when it was entered: two that overlap
take one another away. So there is one, which the first that comes sets and the last that goes takes away.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

from PIL import Image

_lock, _filters, _users = threading.Lock(), contextlib.ExitStack(), [0]


@contextlib.contextmanager
def decoders_warnings() -> Iterator[None]:
    """Make Pillow's warning on oversized images an error, and silence remarks on metadata: they may quote a patient."""
    with _lock:
        if _users[0] == 0:
            _filters.enter_context(warnings.catch_warnings())
            # Damaged EXIF says nothing about the pixels, and a warning does not say which file it is in.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
            warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom|featcache\.dicom")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        _users[0] += 1
    try:
        yield
    finally:
        with _lock:
            _users[0] -= 1
            if _users[0] == 0:
                _filters.close()
