"""The exact warm start: an untrained LLaVA-STF that equals mean pooling."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llava_stf.errors import FusionError
from llava_stf.models.fusion.projector import (
    LlavaStfProjector,
    MultiBlockTokenFusion,
    NormedStates,
    SpatialTokenFusion,
)
from llava_stf.models.fusion.weights import plain_weight


@torch.no_grad()
def init_from_pooling(projector: LlavaStfProjector, base: LlavaMultiModalProjector) -> None:
    """Make `projector` equal the mean over each window of `base`'s outputs, exactly up to rounding, in place.

    It holds in every window, whichever the weights are laid out for.

    Two facts carry it: GELU(x) - GELU(-x) = x, so MBTF passes its first input through on 2C hidden units; and k*k
    copies of the base's hidden layer, one for each place in the window, fit into STF's hidden width. Hidden units
    beyond those keep their random input weights and get zero output weights: they change nothing now and can learn.

    Args:
        projector: with random weights.
        base: LLaVA-1.5's projector (`linear_1`, GELU, `linear_2`) on the first fusion layer; or ViP-LLaVA's, whose norm
            is taken over as it is.

    Raises:
        FusionError: the widths do not allow it, or the base's weights are not whole.
    """
    block, spatial = projector.block_fusion, projector.spatial_fusion
    _check_widths(block, spatial, base)
    first = plain_weight(base.linear_1, "the base projector's linear_1").float()
    second = plain_weight(base.linear_2, "the base projector's linear_2").float()
    if isinstance(block, NormedStates):
        block.projector_layernorm.load_state_dict(base.projector_layernorm.state_dict())
    else:
        _pass_through(block)
    _average(spatial, first, second)
    if spatial.linear_1.bias is not None:
        for copy in _copies(spatial, base.linear_1.out_features):
            spatial.linear_1.bias[copy] = base.linear_1.bias.to(spatial.linear_1.bias)
        spatial.linear_2.bias.copy_(base.linear_2.bias)


def _check_widths(
    block: MultiBlockTokenFusion | NormedStates, spatial: SpatialTokenFusion, base: LlavaMultiModalProjector
) -> None:
    places, hidden = spatial.window**2, base.linear_1.out_features
    width = spatial.linear_1.in_features // places
    if base.linear_1.in_features != width:
        raise FusionError(f"Warm start needs a base projector on {width} channels, found {base.linear_1.in_features}.")
    if isinstance(block, MultiBlockTokenFusion) and block.linear_1.out_features < 2 * width:
        raise FusionError(
            f"Warm start needs fusion_block_hidden_size of at least {2 * width} (twice the tower width), "
            f"found {block.linear_1.out_features}; use init='random' or widen it."
        )
    if spatial.linear_1.out_features < places * hidden:
        raise FusionError(
            f"Warm start needs fusion_hidden_size of at least {places * hidden} ({places} patches a window times the "
            f"base projector's {hidden}), found {spatial.linear_1.out_features}; use init='random' or widen it."
        )


def _pass_through(block: MultiBlockTokenFusion) -> None:
    """Weights by which MBTF gives its first input: +I and -I in, +I and -I out."""
    weight, width = block.linear_1.weight, block.linear_2.out_features
    identity = torch.eye(width, dtype=weight.dtype, device=weight.device)
    weight[: 2 * width].zero_()
    weight[:width, :width] = identity
    weight[width : 2 * width, :width] = -identity
    block.linear_2.weight.zero_()
    block.linear_2.weight[:, :width] = identity
    block.linear_2.weight[:, width : 2 * width] = -identity
    if block.linear_1.bias is not None:
        block.linear_1.bias[: 2 * width].zero_()
        block.linear_2.bias.zero_()


def _average(spatial: SpatialTokenFusion, first: Tensor, second: Tensor) -> None:
    """Weights by which STF runs the base's two layers, float32, on each place and takes the mean."""
    weight, places = spatial.linear_1.weight, spatial.window**2
    spatial.linear_2.weight.zero_()
    for place, units in enumerate(_copies(spatial, len(first))):
        weight[units] = 0
        weight[units, place::places] = first.to(weight)
        spatial.linear_2.weight[:, units] = (second / places).to(weight)


def _copies(spatial: SpatialTokenFusion, hidden: int) -> list[slice]:
    """The hidden units that hold the base's, place by place."""
    step = spatial.linear_1.out_features // spatial.window**2
    return [slice(place * step, place * step + hidden) for place in range(spatial.window**2)]
