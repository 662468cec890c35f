"""Choosing and merging rows of a batch of token sequences."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, M] of each sequence of x [B, N, C]: [B, M, C]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def marked(flags: Tensor, count: int) -> Tensor:
    """Indices of the `count` true places in every row of flags [B, N], ascending: int64 [B, count].

    Without waiting for a GPU, which `nonzero` does.
    """
    return flags.to(torch.uint8).argsort(dim=-1, stable=True)[:, flags.shape[1] - count :]


def merge_tokens(x: Tensor, size: Tensor, home: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the tokens that share a home, for the homes that are kept.

    Args:
        x: [B, N, C]; summed in float32.
        size: float32 [B, N], how many patches each token stands for, its weight in the mean.
        home: int64 [B, N], the token that each goes into; a token that stays has itself for a home.
        kept: int64 [B, M], the tokens that are left, which must be homes of themselves.

    Returns:
        Merged tokens [B, M, C] in the dtype of `x`, and their sizes [B, M].
    """
    sizes = torch.zeros_like(size).scatter_add(1, home, size).gather(1, kept)
    weighted = x.float() * size[..., None]
    sums = torch.zeros_like(weighted).scatter_add(1, home[..., None].expand_as(weighted), weighted)
    return (gather_tokens(sums, kept) / sizes[..., None]).to(x.dtype), sizes
