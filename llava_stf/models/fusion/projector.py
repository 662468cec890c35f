"""Multi-Block Token Fusion (MBTF), Spatial Token Fusion (STF) and the projectors built from them (arXiv 2506.07138).

Shapes: B images, N = g*g patches, K fusion layers, C tower width, k window side, M = N / k**2 tokens, H LLM width.

One worked example, LLaVA-1.5-7B at 336 px: the tower gives 24x24 = 576 patches of C = 1024. Eight states are joined
per patch (8192 channels) and MBTF squeezes them back to 1024. STF joins each 2x2 window of patches to one vector of
4 * 1024 channels and maps it to H = 4096: the LLM sees 12x12 = 144 tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llava_stf.errors import FusionError, KernelError
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf_kernels import (
    BackendError,
    check_backend,
    fuse_blocks,
    fuse_windows,
    gather_windows,
    pool_tokens,
)


class _TwoLayerMlp(nn.Module):
    """Linear, exact GELU, Linear: no normalisation, no residual, no activation at the end.

    `kernels` says what the first layer runs on, see `use_kernels`.
    """

    kernels = "auto"

    def __init__(self, in_features: int, hidden: int | None, out_features: int, config: LlavaStfConfig) -> None:
        super().__init__()
        assert hidden is not None  # a config fills in its widths
        self.linear_1 = nn.Linear(in_features, hidden, bias=config.multimodal_projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, out_features, bias=config.multimodal_projector_bias)
        self._is_exact_gelu = config.projector_hidden_act == "gelu"

    def _layers(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))

    def _first_layer_is_plain(self) -> bool:
        """Whether a kernel may stand in for the first layer: not quantized, LoRA-wrapped, sharded or offloaded."""
        layer = self.linear_1
        hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
        return self._is_exact_gelu and type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not hooked


class MultiBlockTokenFusion(_TwoLayerMlp):
    """Squeeze K tower states [B, N, C] to one of that shape.

    The first layer's weight is [4C, K*C], its columns in the order of the states.
    """

    def __init__(self, config: LlavaStfConfig) -> None:
        width = config.vision_config.hidden_size
        super().__init__(len(config.fusion_states) * width, config.fusion_block_hidden_size, width, config)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        if not self._first_layer_is_plain():
            return self._layers(torch.cat(list(states), dim=-1))
        return self.linear_2(fuse_blocks(states, self.linear_1.weight, self.linear_1.bias, backend=self.kernels))


class SpatialTokenFusion(_TwoLayerMlp):
    """Fuse each k x k window of patches into one LLM token: [B, N, C] -> [B, N / k**2, H].

    The weights are laid out for one window, the paper's 2x2 say, and serve others without a parameter more. Every
    hidden unit has a place of that window for its own, in equal parts: the first quarter of the units the upper left
    one, and so on. In a larger or smaller window a place is the region that covers the same share of the window. A unit
    then sees the patches of its own region one by one, and of each other region the mean; what it answers is averaged
    over its region. In the weights' own window each region is one patch, and this is the paper's STF; after a warm
    start it is the mean of the base projector's outputs in every window.

    The first layer's weight is read in the checkpoint's channel-major order, and the patches are regrouped to it.
    """

    def __init__(self, config: LlavaStfConfig) -> None:
        assert config.fusion_weight_window is not None  # a config fills it in
        joined = config.vision_config.hidden_size * config.fusion_weight_window**2
        super().__init__(joined, config.fusion_hidden_size, config.text_config.hidden_size, config)
        self.window = config.fusion_weight_window

    def forward(self, x: Tensor, window: int | None = None) -> Tensor:
        if window not in (None, self.window):
            return self.linear_2(self._hidden_of_regions(x, window))
        if not self._first_layer_is_plain():
            return self._layers(gather_windows(x, self.window))
        layer = self.linear_1
        return self.linear_2(fuse_windows(x, layer.weight, layer.bias, self.window, backend=self.kernels))

    def _hidden_of_regions(self, x: Tensor, window: int) -> Tensor:
        """Hidden layer in windows of another side than the weights', averaged over regions: [B, M, hidden]."""
        side, size = self.window, (window / self.window) ** 2
        patches = gather_windows(x, window).unflatten(-1, (-1, window, window))  # [B, M, C, k, k]
        regions, areas, means = [], [], []
        for upper, left in itertools.product(range(side), repeat=2):
            (rows, heights), (columns, widths) = region(upper, window, side), region(left, window, side)
            area = torch.outer(torch.tensor(heights), torch.tensor(widths)).flatten().to(patches)
            inside = patches[..., rows, columns].flatten(3)  # [B, M, C, P]
            regions.append(inside)
            areas.append(area)
            means.append(inside @ area / size)
        preactivations = self.linear_1(torch.stack(means, dim=-1).flatten(2)).chunk(side**2, dim=-1)
        weights = self.linear_1.weight.unflatten(-1, (-1, side**2)).chunk(side**2)
        hidden = []
        for place, (inside, area, mean) in enumerate(zip(regions, areas, means, strict=True)):
            # Each patch of a unit's own region in place of the region's mean.
            difference = (inside - mean.unsqueeze(-1)).transpose(2, 3)
            own = functional.linear(difference, weights[place][..., place])
            activations = self.act(preactivations[place].unsqueeze(2) + own)  # [B, M, P, hidden / places]
            hidden.append(area.to(activations) @ activations / size)
        return torch.cat(hidden, dim=-1)


class LlavaStfProjector(nn.Module):
    """The projector of LLaVA-STF: MBTF, then STF. K tower states [B, N, C] -> [B, N / k**2, H].

    `window` is k, by default the one that the weights are laid out for.
    """

    kernels = "auto"

    def __init__(self, config: LlavaStfConfig) -> None:
        super().__init__()
        self.block_fusion = MultiBlockTokenFusion(config)
        self.spatial_fusion = SpatialTokenFusion(config)

    def forward(self, states: Sequence[Tensor], window: int | None = None) -> Tensor:
        return self.spatial_fusion(self.block_fusion(states), window)


class PooledProjector(_TwoLayerMlp):
    """The average-pooling baseline: LLaVA-1.5's projector, then the mean over each window. [B, N, C] -> [B, M, H].

    It has LLaVA-1.5's parameters under LLaVA-1.5's names, so that any LLaVA-1.5 projector loads into it.
    """

    def __init__(self, config: LlavaStfConfig) -> None:
        width = config.text_config.hidden_size
        super().__init__(len(config.fusion_states) * config.vision_config.hidden_size, width, width, config)
        self.window = config.fusion_window

    def forward(self, states: Sequence[Tensor], window: int | None = None) -> Tensor:
        joined = states[0] if len(states) == 1 else torch.cat(list(states), dim=-1)
        return pool_tokens(self._layers(joined), window or self.window, backend=self.kernels)


def region(place: int, window: int, places: int) -> tuple[slice, list[float]]:
    """Patches along one side of a window that lie in the region of one of its places, and how much of each does.

    The side of `window` patches is cut into `places` equal parts: 3 patches in 2 parts are (1, 1/2) and (1/2, 1).
    """
    start, end = place * window, (place + 1) * window  # in units of which a patch has `places`
    patches = range(start // places, -(-end // places))
    overlaps = [(min((patch + 1) * places, end) - max(patch * places, start)) / places for patch in patches]
    return slice(patches.start, patches.stop), overlaps


def use_kernels(projector: nn.Module, kernels: str) -> None:
    """Choose what the projector runs on: `"triton"`, `"torch"`, or `"auto"` for the best that its device has.

    `"auto"` heeds the environment variable `LLAVA_STF_KERNELS`. Quantized, LoRA-wrapped, sharded or offloaded layers
    run as they are in any case. Raises `KernelError` where Triton is asked for and cannot run.
    """
    reference = next(projector.parameters())
    try:
        check_backend(kernels, reference.device, reference.dtype)
    except BackendError as error:
        raise KernelError(str(error)) from error
    for module in projector.modules():
        if isinstance(module, (_TwoLayerMlp, LlavaStfProjector)):
            module.kernels = kernels


def build_projector(config: LlavaStfConfig) -> LlavaStfProjector | PooledProjector:
    """The projector that `config.fusion` names."""
    return PooledProjector(config) if config.fusion == "pool" else LlavaStfProjector(config)


@torch.no_grad()
def init_from_pooling(projector: LlavaStfProjector, base: LlavaMultiModalProjector) -> None:
    """Warm start: make `projector` equal the mean over each window of `base`'s outputs, exactly up to rounding.

    It holds in every window, whichever the weights are laid out for.

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
    spatial.linear_2.weight.zero_()
    for place in range(places):
        start = place * (spatial.linear_1.out_features // places)
        units = slice(start, start + hidden)
        spatial.linear_1.weight[units] = 0
        spatial.linear_1.weight[units, place::places] = first.to(weight)
        spatial.linear_2.weight[:, units] = (second / places).to(weight)
        if spatial.linear_1.bias is not None:
            spatial.linear_1.bias[units] = base.linear_1.bias.to(weight)

    if block.linear_1.bias is not None:
        block.linear_1.bias[: 2 * width].zero_()
        block.linear_2.bias.zero_()
        spatial.linear_2.bias.copy_(base.linear_2.bias)


def _dense(linear: nn.Linear) -> Tensor:
    """Weight of a linear layer in float32; a quantized one has no plain weight to start from."""
    if not linear.weight.is_floating_point():
        raise FusionError("Warm start needs the base projector unquantized; keep `multi_modal_projector` unquantized.")
    return linear.weight.float()
