"""Features to heads, numbers and pictures.

Data flows ``config → samples → train → experiment → runs → decision → sealed → report → tables, notes, plots``; known
cases flow ``nearest → neighbours, near_duplicates, label_errors → audit``. What is read of images comes from
``featcache.open_store``; pixels are only shown, as thumbnails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heads.training.config import HeadConfig, grid

if TYPE_CHECKING:
    from heads.estimator import HeadClassifier
    from heads.training.samples import Samples
    from heads.training.train import fit

__all__ = ["HeadClassifier", "HeadConfig", "Samples", "fit", "grid"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any attribute of the module
    """Load what needs torch when it is asked for."""
    if name == "fit":
        from heads.training.train import fit

        return fit
    if name == "HeadClassifier":
        from heads.estimator import HeadClassifier

        return HeadClassifier
    if name == "Samples":
        from heads.training.samples import Samples

        return Samples
    raise AttributeError(f"module 'heads' has no attribute {name!r}")
