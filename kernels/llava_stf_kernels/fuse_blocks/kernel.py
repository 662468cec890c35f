"""`fuse_blocks` on Triton: the states are the sources of one joined product, the class token is stepped over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..joined_linear.gradients import weight_grad, write_source_grads
from ..joined_linear.kernel import joined_linear


def forward(states: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """K states [B, 1 + N, C] -> GELU(linear) [B, N, O]."""
    return joined_linear(_patches(states), weight.contiguous(), bias).flatten(1, 2)


def backward(
    grad: Tensor, states: Sequence[Tensor], weight: Tensor, bias: Tensor | None, needs_weight: bool, needs_states: bool
) -> list[Tensor]:
    """Gradients [dweight, dbias] and [dstates...] as needed, of the gradient [B, N, O]."""
    weight = weight.contiguous()
    sources = _patches(states)
    grad = joined_linear(sources, weight, bias, grad.contiguous().unsqueeze(1))
    grads = []
    if needs_weight:
        grads += [weight_grad(sources, grad), grad.sum((0, 1, 2), dtype=torch.float32).to(grad.dtype)]
    if needs_states:
        states_grad = [torch.empty(state.shape, dtype=state.dtype, device=state.device) for state in states]
        write_source_grads(_patches(states_grad), weight, grad)
        for state_grad in states_grad:
            state_grad[:, 0] = 0  # the class token takes no part
        grads += states_grad
    return grads


def _patches(states: Sequence[Tensor]) -> list[Tensor]:
    """The patches of each state as [B, 1, N, C]: views, unless a state is laid out unlike the others."""
    if states[0].stride(-1) != 1 or any(state.stride() != states[0].stride() for state in states):
        states = [state.contiguous() for state in states]
    return [state[:, 1:].unsqueeze(1) for state in states]
