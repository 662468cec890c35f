"""The average-pooling baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.mlp import TwoLayerMlp
from llava_stf_kernels import pool_tokens


class PooledProjector(TwoLayerMlp):
    """LLaVA-1.5's projector, then the mean over each window: K hidden states [B, N, C] -> [B, M, H].

    It has LLaVA-1.5's parameters under LLaVA-1.5's names, so that any LLaVA-1.5 projector loads into it. ViP-LLaVA's
    has a norm of the joined states before it, and so has this one where the config names its epsilon.
    """

    def __init__(self, config: FusionConfig) -> None:
        width = config.text_config.hidden_size
        super().__init__(len(config.fusion_states) * config.vision_config.hidden_size, width, width, config)
        self.window = config.fusion_window
        eps = getattr(config, "projector_layernorm_eps", None)
        self.projector_layernorm = None if eps is None else nn.LayerNorm(self.linear_1.in_features, eps=eps)

    def forward(self, states: Sequence[Tensor], window: int | None = None) -> Tensor:
        """States, each [B, N, C], to tokens [B, M, H]; `window` is by default the module's own."""
        joined = states[0] if len(states) == 1 else torch.cat(list(states), dim=-1)
        if self.projector_layernorm is not None:
            joined = self.projector_layernorm(joined)
        return pool_tokens(self.layers(joined), window or self.window, backend=self.kernels)
