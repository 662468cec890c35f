"""The Matryoshka Query Transformer's projector (arXiv 2405.19315): learned queries, of which the first M are taken.

Shapes: B images, N = g*g patches, C tower width, Q queries, M <= Q tokens, H LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_stf.models.fusion.attention import NORM_EPS, CrossAttention, heads_of
from llava_stf.models.fusion.config import FusionConfig

HEAD_WIDTH = 64  # the authors' at C = 1024


class QueryProjector(nn.Module):
    """A state [B, N, C] -> [B, M, H]: one layer of cross-attention from learned queries, then one linear map.

    As in the authors' release, queries and patches are told apart by fixed two-dimensional positions: a query's is
    added to it, a patch's **is** its key, so that where a query looks is learnt and does not depend on the image. The
    authors have Q = 256 queries; here there are as many as the largest of the config's budgets, which makes every
    budget elastic within those that the model is trained for. Token i is the same in every budget that has it. Layers
    start as PyTorch's do, as in `TokenPackerProjector`.

    Args:
        config: with the windows that say how many tokens there may be.
    """

    kernels = "auto"

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, llm = config.vision_config.hidden_size, config.text_config.hidden_size
        self.window = config.fusion_window
        self.queries = nn.Parameter(torch.empty(max(config.vision_token_counts), width))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(3))
        self.attention = CrossAttention(width, heads_of(width, HEAD_WIDTH))
        self.projection = nn.Linear(width, llm, bias=False)
        nn.init.normal_(self.projection.weight, std=llm**-0.5)

    def forward(self, states: Sequence[Tensor], window: int | None = None) -> Tensor:
        """One state [B, N, C] to tokens [B, M, H], M by the side of the windows that leave as many."""
        (x,) = states
        side, own = isqrt(x.shape[1]), isqrt(len(self.queries))
        count = (side // (window or self.window)) ** 2
        places = grid_positions(own, x)
        queries = self.query_norm(self.queries[:count] + places[:count])
        keys = self.key_norm(_resized(places, side))
        return self.projection(self.attention(queries[None], keys[None], self.value_norm(x)))


def grid_positions(side: int, like: Tensor) -> Tensor:
    """Sines and cosines of column and row of a grid, a half of the channels each, in raster order: [side**2, C].

    Args:
        side: of the grid.
        like: gives C, a multiple of 4, dtype and device.
    """
    quarter = like.shape[-1] // 4
    rates = 10_000 ** -(torch.arange(quarter, dtype=torch.float32, device=like.device) / quarter)
    steps = torch.arange(side, dtype=torch.float32, device=like.device)[:, None] * rates
    line = torch.cat([steps.sin(), steps.cos()], dim=-1)  # [side, C / 2]
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=-1).to(like.dtype)


def _resized(places: Tensor, side: int) -> Tensor:
    """The queries' positions on the patches' grid, bicubic: [Q, C] -> [side**2, C]."""
    own = isqrt(len(places))
    grid = places.float().T.unflatten(-1, (own, own))[None]
    return functional.interpolate(grid, size=(side, side), mode="bicubic")[0].flatten(1).T.to(places.dtype)
