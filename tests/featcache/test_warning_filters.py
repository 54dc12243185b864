"""One filter for all threads, whichever of them comes and goes."""

from __future__ import annotations

import warnings

import pytest
from PIL import Image

from featcache.decode import oversize_is_an_error
from featcache.dicom.elements import quietly
from featcache.errors import UnreadableImageError


def said_by_pydicom() -> None:
    warnings.warn_explicit("of a patient", UserWarning, "pydicom/valuerep.py", 1, module="pydicom.valuerep")


def test_who_leaves_first_takes_nothing_from_who_stays() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        first, second = oversize_is_an_error(), oversize_is_an_error()
        first.__enter__()
        second.__enter__()

        def overlapping() -> None:
            # As another thread's would: entered before, left within.
            first.__exit__(None, None, None)
            said_by_pydicom()

        quietly("unreadable", overlapping)
        with pytest.raises(Image.DecompressionBombWarning):
            warnings.warn("too large", Image.DecompressionBombWarning, stacklevel=1)
        second.__exit__(None, None, None)
        assert list(warnings.filters) == before
        with pytest.raises(UserWarning, match="of a patient"):
            said_by_pydicom()


def test_a_failure_within_leaves_nothing_behind() -> None:
    before = list(warnings.filters)

    def failing() -> None:
        raise KeyError("of a patient")

    with pytest.raises(UnreadableImageError, match=r"^unreadable$"):
        quietly("unreadable", failing)
    assert list(warnings.filters) == before
