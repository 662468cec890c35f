"""`fuse_blocks` on Triton: the states are the sources of one joined product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..joined_linear.gradients import source_grads, weight_grad
from ..joined_linear.product import joined_linear


def forward(states: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """K states [B, N, C] -> GELU(linear) [B, N, O]."""
    return joined_linear(_alike(states), weight.contiguous(), bias).view(*states[0].shape[:2], -1)


def backward(
    grad: Tensor, states: Sequence[Tensor], weight: Tensor, bias: Tensor | None, needs_weight: bool, needs_states: bool
) -> list[Tensor]:
    """Gradients [dweight, dbias] and [dstates...] as needed, of the gradient [B, N, O]."""
    weight, states = weight.contiguous(), _alike(states)
    grad = joined_linear(states, weight, bias, grad.contiguous().flatten(0, 1))
    grads = []
    if needs_weight:
        grads += [weight_grad(states, grad), grad.sum(0, dtype=torch.float32).to(grad.dtype)]
    return grads + source_grads(states, weight, grad) if needs_states else grads


def _alike(states: Sequence[Tensor]) -> Sequence[Tensor]:
    """The states with equal strides and contiguous channels; a copy only of states that are laid out differently."""
    strides = states[0].stride()
    if strides[2] == 1 and all(state.stride() == strides for state in states):
        return states
    return [state.contiguous() for state in states]
