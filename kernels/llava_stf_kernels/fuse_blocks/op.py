"""`fuse_blocks` as an operation that torch knows: autograd, `torch.compile`, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix, ops
from ..dispatch import autocast_dtype, choose_backend, kernel_module, launches_directly
from .naive import naive_fuse_blocks


def fuse_blocks(
    states: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """MBTF's first layer: GELU of a linear layer on hidden states joined per patch (arXiv 2506.07138, MBTF).

    Args:
        states: K tensors [B, N, C], in the order of the weight's channels. They need not be contiguous: views of what a
            tower gave, alike in their strides, are read where they lie.
        weight: [O, K*C], in the checkpoint's layout: columns [k*C, (k+1)*C) belong to state k.
        bias: [O] or `None`.
        backend: `"triton"`, `"torch"`, or `None` for `LLAVA_STF_KERNELS`, else the best that the device has.

    Returns:
        [B, N, O] in the dtype of the inputs (float32, bfloat16 or float16; under autocast, autocast's). The Triton path
        makes no copy of such states and keeps only its inputs for the backward pass, which computes the layer again.

    Raises:
        ValueError: shapes do not fit, or Triton was asked for where it cannot run (`BackendError`).
    """
    states = list(states)
    shapes = dict.fromkeys([state.shape for state in states])
    if len(shapes) != 1 or states[0].dim() != 3 or weight.shape[1] != len(states) * states[0].shape[2]:
        raise ValueError(
            f"Expected K states [B, N, C] of one shape and a weight [O, K*C], found states of "
            f"{[tuple(shape) for shape in shapes]} and a weight of {tuple(weight.shape)}."
        )
    dtype = autocast_dtype(weight)
    if dtype is not None:
        states, weight = [state.to(dtype) for state in states], weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    tensors = [weight, *states] if bias is None else [weight, bias, *states]
    if choose_backend(backend, *tensors) == "torch":
        return naive_fuse_blocks(states, weight, bias)
    if launches_directly(*tensors):
        return kernel_module(__package__).forward(states, weight, bias)
    return ops.fuse_blocks(states, weight, bias)


@torch.library.custom_op(add_op_namespace_prefix("fuse_blocks"), mutates_args=())
def _forward(states: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    return kernel_module(__package__).forward(states, weight, bias)


@_forward.register_fake
def _(states: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    batch, patches, _ = states[0].shape
    return weight.new_empty(batch, patches, weight.shape[0])


@torch.library.custom_op(add_op_namespace_prefix("fuse_blocks_backward"), mutates_args=())
def _backward(
    grad: Tensor, states: list[Tensor], weight: Tensor, bias: Tensor | None, needs_weight: bool, needs_states: bool
) -> list[Tensor]:
    return kernel_module(__package__).backward(grad, states, weight, bias, needs_weight, needs_states)


@_backward.register_fake
def _(
    grad: Tensor, states: list[Tensor], weight: Tensor, bias: Tensor | None, needs_weight: bool, needs_states: bool
) -> list[Tensor]:
    of_weight = [weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])] if needs_weight else []
    return of_weight + ([state.new_empty(state.shape) for state in states] if needs_states else [])


def _save(ctx: Any, inputs: tuple[list[Tensor], Tensor, Tensor | None], output: Tensor) -> None:
    states, weight, bias = inputs
    ctx.save_for_backward(weight, bias, *states)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
    weight, bias, *states = ctx.saved_tensors
    of_states, of_weight, of_bias = ctx.needs_input_grad
    needs_weight, needs_states = of_weight or of_bias, any(of_states)
    grads = ops.fuse_blocks_backward(grad, states, weight, bias, needs_weight, needs_states)
    weight_grad, bias_grad = (grads.pop(0), grads.pop(0)) if needs_weight else (None, None)
    return grads or [None] * len(states), weight_grad, bias_grad if of_bias else None


_forward.register_autograd(_differentiate, setup_context=_save)
