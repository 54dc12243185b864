"""Images to features: run frozen backbones once over a data set and keep what they see.

Data flows ``images → splits``, and ``decode → views → backbones → extraction → parts → index``; ``store`` reads it
back. Nothing here knows of heads, and reading a store needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featcache.errors import CxrError

if TYPE_CHECKING:
    from featcache.extraction import extract
    from featcache.store import FeatureStore, open_store

__all__ = ["CxrError", "FeatureStore", "extract", "open_store"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any attribute of the module
    """Load what is asked for: readers of a store need no torch, and ``cxr doctor`` must run where h5py does not."""
    if name == "extract":
        from featcache.extraction import extract

        return extract
    if name in ("FeatureStore", "open_store"):
        from featcache import store

        return getattr(store, name)
    raise AttributeError(f"module 'featcache' has no attribute {name!r}")
