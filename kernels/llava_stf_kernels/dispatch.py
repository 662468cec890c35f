"""Which implementation an operation runs on, decided in one place: a Triton kernel or plain torch.

A call's `backend` wins over the environment variable `LLAVA_STF_KERNELS`, which wins over what the hardware suggests.
The path taken and the reason are logged once per kind of call, at INFO.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("llava_stf_kernels")

BACKENDS = ("auto", "triton", "torch")
ENVIRONMENT = "LLAVA_STF_KERNELS"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MINIMUM_CAPABILITY = (8, 0)  # Triton's own minimum


class BackendError(ValueError):
    """Triton was asked for where it cannot run, or a backend of an unknown name."""


def choose_backend(backend: str | None, *tensors: Tensor) -> str:
    """`"triton"` or `"torch"` for a call on these tensors.

    `backend` is `"triton"`, `"torch"`, or `"auto"` (as is `None`): the environment's choice, else Triton on a CUDA
    device that can run it, else torch.

    Raises:
        BackendError: Triton was asked for and cannot run.
    """
    if backend in (None, "auto") and any(tensor.numel() == 0 for tensor in tensors):
        return "torch"
    kinds = dict.fromkeys([(tensor.device, tensor.dtype) for tensor in tensors])
    return _choose(backend or "auto", tuple((device.type, device.index, dtype) for device, dtype in kinds))


def check_backend(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check that `backend` can run on `device` in `dtype`.

    Raises:
        BackendError: it cannot, or has an unknown name.
    """
    _choose(backend, ((device.type, device.index, dtype),))


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype in which torch's own matrix products would take the tensor under the autocast in force, if any."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def launches_directly(*tensors: Tensor) -> bool:
    """Whether only the device needs to know of a call: nothing is differentiated, traced or wrapped.

    Such a call launches its kernel without torch's dispatcher, whose time on the host counts at batch 1.
    """
    if torch.compiler.is_compiling() or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


@cache
def kernel_module(package: str) -> Any:
    """The module `kernel` of an operation's package, which imports Triton: loaded when it is first used."""
    return import_module(".kernel", package)


def is_interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU (`TRITON_INTERPRET=1` before Triton's import)."""
    if find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


# The answer depends on no tensor's values, so a compiled graph may hold it as a constant.
@torch.compiler.assume_constant_result
def _choose(backend: str, kinds: tuple[tuple[str, int | None, torch.dtype], ...]) -> str:
    if backend not in BACKENDS:
        raise BackendError(f"Kernels must be one of {', '.join(BACKENDS)}, found '{backend}'.")
    asked, by = backend, "the caller"
    if backend == "auto":
        asked, by = os.environ.get(ENVIRONMENT, "auto"), ENVIRONMENT
        if asked not in BACKENDS:
            raise BackendError(f"{ENVIRONMENT} must be one of {', '.join(BACKENDS)}, found '{asked}'.")
    return _decide(asked, by, kinds)


@cache
def _decide(asked: str, by: str, kinds: tuple[tuple[str, int | None, torch.dtype], ...]) -> str:
    obstacle = _obstacle(kinds, interpreter=asked == "triton")
    if asked == "triton" and obstacle is not None:
        raise BackendError(f"Triton kernels were asked for by {by}, but {obstacle}; take 'auto' or 'torch'.")
    where = f"{kinds[0][0]} in {str(kinds[0][2]).removeprefix('torch.')}"
    if asked == "torch" or obstacle is not None:
        logger.info("plain torch on %s: %s", where, obstacle if asked != "torch" else f"asked for by {by}")
        return "torch"
    logger.info("Triton kernels on %s: %s", where, f"asked for by {by}" if asked == "triton" else "the device has them")
    return "triton"


def _obstacle(kinds: tuple[tuple[str, int | None, torch.dtype], ...], *, interpreter: bool) -> str | None:
    """Why Triton cannot run on tensors of these kinds, or `None`; the interpreter counts only where asked for."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    device, index, dtype = kinds[0]
    if len(kinds) > 1:
        found = ", ".join(f"{kind[2]} on {kind[0]}" for kind in kinds)
        return f"the tensors differ in device or dtype: {found}"
    if dtype not in DTYPES:
        return f"the kernels take float32, bfloat16 and float16, not {dtype}"
    if interpreter and device == "cpu" and is_interpreting():
        return None
    if device != "cuda" or torch.version.hip is not None:
        return f"the tensors are on '{device}' and the kernels need a CUDA device"
    capability = torch.cuda.get_device_capability(index)
    if capability < MINIMUM_CAPABILITY:
        return f"the device has capability {capability[0]}.{capability[1]} and Triton needs 8.0"
    return None
