"""Kernels of token reduction for LLaVA: from a vision tower's hidden states to the LLM's input embeddings.

Every operation has a plain torch version (`naive.py`: its meaning, and the path on a CPU), Triton kernels (`kernel.py`)
and one public function that chooses between them (`op.py`, `dispatch.py`). Needs torch; Triton is imported when first
used.
"""

from .dispatch import BackendError, check_backend, choose_backend
from .fuse_blocks import fuse_blocks, naive_fuse_blocks
from .fuse_windows import fuse_windows, naive_fuse_windows
from .place_tokens import check_count, naive_place_tokens, place_tokens
from .pool_tokens import naive_pool_tokens, pool_tokens
from .windows import gather_windows

__all__ = [
    "BackendError",
    "check_backend",
    "check_count",
    "choose_backend",
    "fuse_blocks",
    "fuse_windows",
    "gather_windows",
    "naive_fuse_blocks",
    "naive_fuse_windows",
    "naive_place_tokens",
    "naive_pool_tokens",
    "place_tokens",
    "pool_tokens",
]
