"""The projector of a model that several GPUs share: the hidden units of each of its modules are spread over the ranks.

Every rank runs the ordinary modules at a fraction of their hidden width, on the same kernels, and the ranks add up what
comes out. On one GPU that is the projector itself.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.utils import set_weight_attrs

from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.config import FusionConfig, refuse_resampler
from llava_stf.models.fusion.pooling import PooledProjector
from llava_stf.models.fusion.projector import LlavaStfProjector, MultiBlockTokenFusion, SpatialTokenFusion
from llava_stf.vllm_plugin.served import check_ranks, projector_units, spatial_places


class _SummedLinear(nn.Linear):
    """A linear layer of which each rank holds some input channels: [..., in / ranks] -> [..., out], the sum of all."""

    def forward(self, x: Tensor) -> Tensor:
        return tensor_model_parallel_all_reduce(super().forward(x))


def build_shared_projector(config: FusionConfig) -> LlavaStfProjector | PooledProjector:
    """The projector that `config` names, this rank's part of it, whose parameters take the whole's when loaded.

    Raises:
        FusionError: the hidden units cannot be spread evenly, or the projector is that of another paper.
    """
    refuse_resampler(config, "The plugin for vLLM")
    check_ranks(projector_units(config), get_tensor_model_parallel_world_size())
    with torch.device("meta"):
        projector = build_projector(config)
    assert isinstance(projector, PooledProjector | LlavaStfProjector)
    if isinstance(projector, PooledProjector):
        _share(projector, places=1)
    else:
        assert isinstance(projector.block_fusion, MultiBlockTokenFusion)  # of every model that the plugin takes
        _share(projector.block_fusion, places=1)
        # STF's hidden units belong to the places of a window, in equal parts; each rank takes its share of every part.
        _share(projector.spatial_fusion, places=spatial_places(config))
    return projector


def _share(module: MultiBlockTokenFusion | SpatialTokenFusion | PooledProjector, places: int) -> None:
    ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
    first, second = module.linear_1, module.linear_2
    hidden, bias = first.out_features // ranks, first.bias is not None
    module.linear_1 = nn.Linear(first.in_features, hidden, bias=bias)
    module.linear_2 = _SummedLinear(hidden, second.out_features, bias=bias)
    load = partial(_load_share, places=places, rank=rank, ranks=ranks)
    set_weight_attrs(module.linear_1.weight, {"weight_loader": partial(load, dim=0)})
    set_weight_attrs(module.linear_2.weight, {"weight_loader": partial(load, dim=1)})
    if bias:
        set_weight_attrs(module.linear_1.bias, {"weight_loader": partial(load, dim=0)})
        set_weight_attrs(module.linear_2.bias, {"weight_loader": partial(_load_once, rank=rank)})


def _load_share(parameter: nn.Parameter, whole: Tensor, *, dim: int, places: int, rank: int, ranks: int) -> None:
    """Copies a rank's hidden units, along `dim`, of a whole tensor into its parameter."""
    units = whole.unflatten(dim, (places, ranks, -1)).select(dim + 1, rank)
    parameter.data.copy_(units.flatten(dim, dim + 1))


def _load_once(parameter: nn.Parameter, whole: Tensor, *, rank: int) -> None:
    """Copies a bias that is added on every rank to the first one; the others add nothing."""
    parameter.data.copy_(whole if rank == 0 else torch.zeros_like(whole))
