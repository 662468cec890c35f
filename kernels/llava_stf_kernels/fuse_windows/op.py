"""`fuse_windows` as an operation that torch knows: autograd, `torch.compile`, and the choice of a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix, ops
from ..dispatch import autocast_dtype, choose_backend, kernel_module, launches_directly
from ..windows import grid_side, prepare_window_weight, restore_window_weight
from .naive import naive_fuse_windows


def fuse_windows(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, window: int = 2, *, backend: str | None = None
) -> Tensor:
    """STF's first layer: GELU of a linear layer on each k x k window of patches (arXiv 2506.07138, STF).

    Args:
        x: [B, N, C] patches in raster order on a square grid.
        weight: [O, C * k**2] in the checkpoint's layout, channel-major: column `c*k*k + dy*k + dx`. Or [O, k**2, C]
            from `prepare_window_weight`, the order in which the kernel reads it, which saves re-laying it at each call.
        bias: [O] or `None`.
        window: side k of a window.
        backend: `"triton"`, `"torch"`, or `None` for `LLAVA_STF_KERNELS`, else the best that the device has.

    Returns:
        [B, N / k**2, O] in the dtype of the inputs (float32, bfloat16 or float16; under autocast, autocast's), windows
        in raster order. The Triton path makes no copy of the patches and keeps only its inputs for the backward pass,
        which computes the layer again.

    Raises:
        ValueError: shapes do not fit, or Triton was asked for where it cannot run (`BackendError`).
    """
    if x.dim() != 3:
        raise ValueError(f"Expected patches [B, N, C], found {tuple(x.shape)}.")
    grid_side(x.shape[1], window)
    places, channels = window * window, x.shape[-1]
    if weight.shape[1:] not in ((channels * places,), (places, channels)):
        raise ValueError(
            f"Expected a weight [O, {channels * places}], or prepared [O, {places}, {channels}], for windows of "
            f"{window}x{window} and {channels} channels, found {tuple(weight.shape)}."
        )
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if choose_backend(backend, *tensors) == "torch":
        return naive_fuse_windows(x, weight if weight.dim() == 2 else restore_window_weight(weight), bias, window)
    prepared = weight if weight.dim() == 3 else prepare_window_weight(weight, window)
    if launches_directly(*tensors):
        return kernel_module(__package__).forward(x, prepared, bias, window)
    return ops.fuse_windows(x, prepared, bias, window)


@torch.library.custom_op(add_op_namespace_prefix("fuse_windows"), mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: int) -> Tensor:
    return kernel_module(__package__).forward(x, weight, bias, window)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, window: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // window**2, weight.shape[0])


@torch.library.custom_op(add_op_namespace_prefix("fuse_windows_backward"), mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, window: int, needs_weight: bool, needs_x: bool
) -> list[Tensor]:
    return kernel_module(__package__).backward(grad, x, weight, bias, window, needs_weight, needs_x)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, window: int, needs_weight: bool, needs_x: bool
) -> list[Tensor]:
    of_weight = [weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])] if needs_weight else []
    return of_weight + ([x.new_empty(x.shape)] if needs_x else [])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:
    x, weight, bias, ctx.window = inputs
    ctx.save_for_backward(x, weight, bias)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight, bias = ctx.saved_tensors
    needs_x, of_weight, of_bias, _ = ctx.needs_input_grad
    needs_weight = of_weight or of_bias
    grads = ops.fuse_windows_backward(grad, x, weight, bias, ctx.window, needs_weight, needs_x)
    weight_grad, bias_grad = (grads.pop(0), grads.pop(0)) if needs_weight else (None, None)
    return grads[0] if grads else None, weight_grad, bias_grad if of_bias else None, None


_forward.register_autograd(_differentiate, setup_context=_save)
