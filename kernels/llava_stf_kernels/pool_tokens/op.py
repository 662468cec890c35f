"""`pool_tokens` as an operation that torch knows: autograd, `torch.compile`, and the choice of a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix, ops
from ..dispatch import choose_backend, kernel_module, launches_directly
from ..windows import grid_side
from .naive import naive_pool_tokens


def pool_tokens(x: Tensor, window: int, *, backend: str | None = None) -> Tensor:
    """Mean over each k x k window of adjacent patches: the average-pooling baseline of token reduction.

    Args:
        x: [B, N, C] patches in raster order on a square grid; a view of a hidden state is read where it lies.
        window: side k of a window; must divide the grid.
        backend: `"triton"`, `"torch"`, or `None` for `LLAVA_STF_KERNELS`, else the best that the device has.

    Returns:
        [B, N / k**2, C] in the dtype of `x` (float32, bfloat16 or float16), summed in float32, windows in raster
        order.

    Raises:
        ValueError: the window does not divide the grid, or Triton was asked for where it cannot run (`BackendError`).
    """
    if x.dim() != 3:
        raise ValueError(f"Expected patches [B, N, C], found {tuple(x.shape)}.")
    grid_side(x.shape[1], window)
    if choose_backend(backend, x) == "torch":
        return naive_pool_tokens(x, window)
    if launches_directly(x):
        return kernel_module(__package__).forward(x, window)
    return ops.pool_tokens(x, window)


@torch.library.custom_op(add_op_namespace_prefix("pool_tokens"), mutates_args=())
def _forward(x: Tensor, window: int) -> Tensor:
    return kernel_module(__package__).forward(x, window)


@_forward.register_fake
def _(x: Tensor, window: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // window**2, x.shape[2])


@torch.library.custom_op(add_op_namespace_prefix("pool_tokens_backward"), mutates_args=())
def _backward(grad: Tensor, window: int) -> Tensor:
    return kernel_module(__package__).backward(grad, window)


@_backward.register_fake
def _(grad: Tensor, window: int) -> Tensor:
    return grad.new_empty(grad.shape[0], grad.shape[1] * window**2, grad.shape[2])


def _save(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    _, ctx.window = inputs


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return ops.pool_tokens_backward(grad, ctx.window), None


_forward.register_autograd(_differentiate, setup_context=_save)
