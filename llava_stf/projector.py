"""Multi-Block Token Fusion (MBTF), Spatial Token Fusion (STF) and the projectors built from them (arXiv 2506.07138).

Shapes: B images, N = g*g patches, K fusion layers, C tower width, k window side, M = N / k**2 tokens, H LLM width.

One worked example, LLaVA-1.5-7B at 336 px: the tower gives 24x24 = 576 patches of C = 1024. Eight states are joined
per patch (8192 channels) and MBTF squeezes them back to 1024. STF joins each 2x2 window of patches to one vector of
4 * 1024 channels and maps it to H = 4096: the LLM sees 12x12 = 144 tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .configuration_llava_stf import LlavaStfConfig
from .errors import FusionError


def gather_windows(x: Tensor, window: int) -> Tensor:
    """Regroup patches into non-overlapping windows: [B, N, C] -> [B, N / k**2, C * k**2].

    Tokens keep the raster order of the windows. Inside a token the layout is channel-major: element
    `c*k*k + dy*k + dx` is channel c of the patch at row dy, column dx of the window, the order of `pixel_unshuffle`
    and of a k x k convolution's weight. Checkpoints depend on it.
    """
    batch, patches, channels = x.shape
    grid = math.isqrt(patches)
    if grid * grid != patches or grid % window:
        raise FusionError(f"Windows of {window}x{window} need a square grid they divide, found {patches} patches.")
    side = grid // window
    x = x.view(batch, side, window, side, window, channels)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(batch, side * side, channels * window * window)


def average_windows(x: Tensor, window: int) -> Tensor:
    """Mean over each window of patches: [B, N, C] -> [B, N / k**2, C], in raster order."""
    return gather_windows(x, window).unflatten(-1, (x.shape[-1], window * window)).mean(-1)


class _TwoLayerMlp(nn.Module):
    """Linear, exact GELU, Linear: no normalisation, no residual, no activation at the end."""

    def __init__(self, in_features: int, hidden: int | None, out_features: int, config: LlavaStfConfig) -> None:
        super().__init__()
        assert hidden is not None  # a config fills in its widths
        self.linear_1 = nn.Linear(in_features, hidden, bias=config.multimodal_projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, out_features, bias=config.multimodal_projector_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class MultiBlockTokenFusion(_TwoLayerMlp):
    """Squeeze K tower states, joined per patch on the channel axis, to one: [B, N, K*C] -> [B, N, C]."""

    def __init__(self, config: LlavaStfConfig) -> None:
        width = config.vision_config.hidden_size
        super().__init__(len(config.fusion_states) * width, config.fusion_block_hidden_size, width, config)


class SpatialTokenFusion(_TwoLayerMlp):
    """Fuse each k x k window of patches into one LLM token: [B, N, C] -> [B, N / k**2, H]."""

    def __init__(self, config: LlavaStfConfig) -> None:
        joined = config.vision_config.hidden_size * config.fusion_window**2
        super().__init__(joined, config.fusion_hidden_size, config.text_config.hidden_size, config)
        self.window = config.fusion_window

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(gather_windows(x, self.window))


class LlavaStfProjector(nn.Module):
    """The projector of LLaVA-STF: MBTF, then STF. [B, N, K*C] -> [B, N / k**2, H]."""

    def __init__(self, config: LlavaStfConfig) -> None:
        super().__init__()
        self.block_fusion = MultiBlockTokenFusion(config)
        self.spatial_fusion = SpatialTokenFusion(config)

    def forward(self, image_features: Tensor) -> Tensor:
        return self.spatial_fusion(self.block_fusion(image_features))


class PooledProjector(_TwoLayerMlp):
    """The average-pooling baseline: LLaVA-1.5's projector, then the mean over each window. [B, N, C] -> [B, M, H].

    It has LLaVA-1.5's parameters under LLaVA-1.5's names, so that any LLaVA-1.5 projector loads into it.
    """

    def __init__(self, config: LlavaStfConfig) -> None:
        width = config.text_config.hidden_size
        super().__init__(len(config.fusion_states) * config.vision_config.hidden_size, width, width, config)
        self.window = config.fusion_window

    def forward(self, image_features: Tensor) -> Tensor:
        return average_windows(super().forward(image_features), self.window)


def build_projector(config: LlavaStfConfig) -> LlavaStfProjector | PooledProjector:
    """The projector that `config.fusion` names."""
    return PooledProjector(config) if config.fusion == "pool" else LlavaStfProjector(config)


@torch.no_grad()
def init_from_pooling(projector: LlavaStfProjector, base: LlavaMultiModalProjector) -> None:
    """Warm start: make `projector` equal the mean over each window of `base`'s outputs, exactly up to rounding.

    `base` is LLaVA-1.5's projector (`linear_1`, GELU, `linear_2`) on the first fusion layer. Two facts carry it:
    GELU(x) - GELU(-x) = x, so MBTF passes its first input through on 2C hidden units; and k*k copies of the base's
    hidden layer, one for each place in the window, fit into STF's hidden width. Hidden units beyond those keep their
    random input weights and get zero output weights: they change nothing now and can learn.

    Raises `FusionError` where the widths do not allow it.
    """
    block, spatial = projector.block_fusion, projector.spatial_fusion
    width, places, hidden = block.linear_2.out_features, spatial.window**2, base.linear_1.out_features
    if base.linear_1.in_features != width:
        raise FusionError(f"Warm start needs a base projector on {width} channels, found {base.linear_1.in_features}.")
    if block.linear_1.out_features < 2 * width:
        raise FusionError(
            f"Warm start needs fusion_block_hidden_size of at least {2 * width} (twice the tower width), "
            f"found {block.linear_1.out_features}; use init='random' or widen it."
        )
    if spatial.linear_1.out_features < places * hidden:
        raise FusionError(
            f"Warm start needs fusion_hidden_size of at least {places * hidden} ({places} patches a window times the "
            f"base projector's {hidden}), found {spatial.linear_1.out_features}; use init='random' or widen it."
        )

    weight = block.linear_1.weight
    identity = torch.eye(width, dtype=weight.dtype, device=weight.device)
    weight[: 2 * width].zero_()
    weight[:width, :width] = identity
    weight[width : 2 * width, :width] = -identity
    block.linear_2.weight.zero_()
    block.linear_2.weight[:, :width] = identity
    block.linear_2.weight[:, width : 2 * width] = -identity

    first, second = _dense(base.linear_1), _dense(base.linear_2)
    used = places * hidden
    rows = torch.zeros(places, hidden, width, places, dtype=first.dtype, device=first.device)
    for place in range(places):
        rows[place, :, :, place] = first
    spatial.linear_1.weight[:used] = rows.view(used, width * places).to(weight)
    spatial.linear_2.weight.zero_()
    spatial.linear_2.weight[:, :used] = (second.repeat(1, places) / places).to(weight)

    if block.linear_1.bias is not None:
        block.linear_1.bias[: 2 * width].zero_()
        block.linear_2.bias.zero_()
        spatial.linear_1.bias[:used] = base.linear_1.bias.repeat(places).to(weight)
        spatial.linear_2.bias.copy_(base.linear_2.bias)


def _dense(linear: nn.Linear) -> Tensor:
    """Weight of a linear layer in float32; a quantized one has no plain weight to start from."""
    if not linear.weight.is_floating_point():
        raise FusionError("Warm start needs the base projector unquantized; keep `multi_modal_projector` unquantized.")
    return linear.weight.float()
