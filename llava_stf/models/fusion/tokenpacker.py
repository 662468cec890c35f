"""TokenPacker's projector (arXiv 2407.02392): a coarse grid of queries, each of which looks into its own window.

Shapes: B images, N = g*g patches, K hidden states, C tower width, k window side, M = N / k**2 tokens, H LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_stf.models.fusion.attention import NORM_EPS, CrossAttention, heads_of
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.mlp import TwoLayerMlp
from llava_stf_kernels import gather_windows

HEAD_WIDTH = 128  # the authors' at C = 1024


class TokenPackerProjector(nn.Module):
    """K states [B, N, C] -> [B, M, H].

    The selected state, brought to the coarse grid by bilinear interpolation, gives the queries (section "Coarse-to-fine
    scheme"); keys and values are all K states joined, through two layers each; a query attends to the k x k patches of
    its window (region-to-point injection); LLaVA-1.5's two layers make a token of the result. As in the authors'
    release nothing is added to the attention's output, the three inputs are normalised, and no weight depends on k, so
    that one set serves every window. Ours: weights start as PyTorch's linear layers do, not at a standard deviation of
    0.02, which is about the same at C = 1024 and too small in narrower towers.

    Args:
        config: its first fusion layer is the one of the queries.
    """

    kernels = "auto"

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, llm = config.vision_config.hidden_size, config.text_config.hidden_size
        joined = len(config.fusion_states) * width
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (TwoLayerMlp(joined, width, width, config) for _ in range(2))
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(3))
        self.attention = CrossAttention(width, heads_of(width, HEAD_WIDTH))
        self.mlp = TwoLayerMlp(width, llm, llm, config)
        self.window = config.fusion_window

    def forward(self, states: Sequence[Tensor], window: int | None = None) -> Tensor:
        """States, each [B, N, C], to tokens [B, M, H]; `window` is by default the module's own."""
        window = window or self.window
        joined = torch.cat(list(states), dim=-1)
        keys = _regions(self.key_norm(self.key.layers(joined)), window)
        values = _regions(self.value_norm(self.value.layers(joined)), window)
        queries = self.query_norm(self.query(coarse_grid(states[0], window)))
        found = self.attention(queries.flatten(0, 1).unsqueeze(1), keys, values)  # windows as rows of a batch
        return self.mlp.layers(found.view_as(queries))


def coarse_grid(x: Tensor, window: int) -> Tensor:
    """Patches [B, N, C], N a square, brought to M = N / k**2 by bilinear interpolation in float32: [B, M, C]."""
    side = isqrt(x.shape[1])
    grid = x.transpose(1, 2).unflatten(-1, (side, side)).float()
    coarse = functional.interpolate(grid, size=(side // window, side // window), mode="bilinear")
    return coarse.flatten(2).transpose(1, 2).to(x.dtype)


def _regions(x: Tensor, window: int) -> Tensor:
    """The patches of each window: [B, N, C] -> [B * M, k*k, C]."""
    return gather_windows(x, window).flatten(0, 1).unflatten(-1, (x.shape[-1], window**2)).transpose(1, 2)
