"""The projector that a config names, and what it runs on."""

from __future__ import annotations

from typing import Any

from torch import nn

from llava_stf.errors import KernelError
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.mlp import TwoLayerMlp
from llava_stf.models.fusion.mqt import QueryProjector
from llava_stf.models.fusion.pooling import PooledProjector
from llava_stf.models.fusion.projector import LlavaStfProjector
from llava_stf.models.fusion.tokenpacker import TokenPackerProjector
from llava_stf_kernels import BackendError, check_backend

Projector = LlavaStfProjector | PooledProjector | TokenPackerProjector | QueryProjector
_PROJECTORS: dict[str, Any] = {
    "stf": LlavaStfProjector,
    "pool": PooledProjector,
    "tokenpacker": TokenPackerProjector,
    "mqt": QueryProjector,
}


def build_projector(config: FusionConfig) -> Projector:
    """The projector that `config.fusion` names, with random weights."""
    return _PROJECTORS[config.fusion](config)


def use_kernels(projector: nn.Module, kernels: str) -> None:
    """Choose what the projector runs on, in place.

    Quantized, LoRA-wrapped, sharded or offloaded layers run as they are in any case.

    Args:
        projector: a projector of this package.
        kernels: `"triton"`, `"torch"`, or `"auto"` for the best that its device has, which heeds the environment
            variable `LLAVA_STF_KERNELS`.

    Raises:
        KernelError: Triton is asked for and cannot run.
    """
    reference = next(projector.parameters())
    try:
        check_backend(kernels, reference.device, reference.dtype)
    except BackendError as error:
        raise KernelError(str(error)) from error
    for module in projector.modules():
        if isinstance(module, (TwoLayerMlp, *_PROJECTORS.values())):
            module.kernels = kernels  # type: ignore[assignment]  # declared by each of them
