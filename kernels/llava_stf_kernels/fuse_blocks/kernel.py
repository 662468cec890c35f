"""`fuse_blocks` on Triton: the states are the sources of one joined product, the class token is stepped over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..joined_linear.gradients import weight_grad, write_source_grads
from ..joined_linear.product import joined_linear
from ..joined_linear.sources import tower_states


def forward(states: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """K states [B, 1 + N, C] -> GELU(linear) [B, N, O]."""
    batch, tokens, _ = states[0].shape
    return joined_linear(tower_states(states), weight.contiguous(), bias).view(batch, tokens - 1, -1)


def backward(
    grad: Tensor, states: Sequence[Tensor], weight: Tensor, bias: Tensor | None, needs_weight: bool, needs_states: bool
) -> list[Tensor]:
    """Gradients [dweight, dbias] and [dstates...] as needed, of the gradient [B, N, O]."""
    weight = weight.contiguous()
    sources = tower_states(states)
    grad = joined_linear(sources, weight, bias, grad.contiguous().flatten(0, 1))
    grads = []
    if needs_weight:
        grads += [weight_grad(sources, grad), grad.sum(0, dtype=torch.float32).to(grad.dtype)]
    if needs_states:
        of_states = [torch.empty(state.shape, dtype=state.dtype, device=state.device) for state in states]
        write_source_grads(tower_states(of_states), weight, grad)
        for of_state in of_states:
            of_state[:, 0] = 0  # the class token takes no part
        grads += of_states
    return grads
