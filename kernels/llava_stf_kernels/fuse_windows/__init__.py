"""STF's first layer over windows that are never regrouped."""

from .naive import naive_fuse_windows
from .op import fuse_windows

__all__ = ["fuse_windows", "naive_fuse_windows"]
