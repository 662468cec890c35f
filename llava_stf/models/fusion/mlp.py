"""The two layers that every projector here is made of."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN

from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.weights import is_plain_layer


class TwoLayerMlp(nn.Module):
    """Linear, exact GELU, Linear: no normalisation, no residual, no activation at the end.

    `kernels` says what the first layer runs on, see `use_kernels`.

    Args:
        in_features: input channels.
        hidden: hidden units.
        out_features: output channels.
        config: for bias and activation.
    """

    kernels = "auto"

    def __init__(self, in_features: int, hidden: int | None, out_features: int, config: FusionConfig) -> None:
        super().__init__()
        assert hidden is not None  # a config fills in its widths
        self.linear_1 = nn.Linear(in_features, hidden, bias=config.multimodal_projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, out_features, bias=config.multimodal_projector_bias)
        self._is_exact_gelu = config.projector_hidden_act == "gelu"

    def layers(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], through the layers themselves."""
        return self.linear_2(self.act(self.linear_1(x)))

    def takes_kernels(self) -> bool:
        """Whether a kernel may stand in for the first layer and the activation."""
        return self._is_exact_gelu and is_plain_layer(self.linear_1)
