"""STF's first layer over windows of patches."""

from .naive import naive_fuse_windows
from .op import fuse_windows

__all__ = ["fuse_windows", "naive_fuse_windows"]
