"""`place_tokens` in plain torch: what the kernel must equal, and the path without one."""

from __future__ import annotations

from torch import Tensor


def naive_place_tokens(embeddings: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The embeddings [B, T, H] with row r of tokens [R, H] at the r-th place of mask [B, T], in raster order."""
    return embeddings.masked_scatter(mask.unsqueeze(-1), tokens)
