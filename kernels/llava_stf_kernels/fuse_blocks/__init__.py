"""MBTF's first layer over hidden states that are never joined."""

from .naive import naive_fuse_blocks
from .op import fuse_blocks

__all__ = ["fuse_blocks", "naive_fuse_blocks"]
