"""`fuse_windows` on Triton: the places of a window are the sources of one joined product."""

from __future__ import annotations

import torch
from torch import Tensor

from ..joined_linear.gradients import weight_grad, write_source_grads
from ..joined_linear.kernel import joined_linear
from ..windows import window_places


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: int) -> Tensor:
    """x [B, N, C], prepared weight [O, k**2, C] -> GELU(linear) [B, N / k**2, O]."""
    return joined_linear(_places(x, window), weight.contiguous().flatten(1), bias).flatten(1, 2)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, window: int, needs_weight: bool, needs_x: bool
) -> list[Tensor]:
    """Gradients [dweight, dbias] and [dx] as needed, of the gradient [B, N / k**2, O]."""
    flat = weight.contiguous().flatten(1)
    sources = _places(x, window)
    grad = joined_linear(sources, flat, bias, grad.contiguous().view(*sources[0].shape[:3], -1))
    grads = []
    if needs_weight:
        of_weight = weight_grad(sources, grad).view(weight.shape)
        grads += [of_weight, grad.sum((0, 1, 2), dtype=torch.float32).to(grad.dtype)]
    if needs_x:
        # Windows do not overlap and cover the grid: every element is written once.
        x_grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        write_source_grads(window_places(x_grad, window), flat, grad)
        grads.append(x_grad)
    return grads


def _places(x: Tensor, window: int) -> list[Tensor]:
    return window_places(x if x.stride(-1) == 1 else x.contiguous(), window)
