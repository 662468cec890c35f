"""`fuse_windows` on Triton: the places of a window are the sources of one joined product."""

from __future__ import annotations

import torch
from torch import Tensor

from ..joined_linear.gradients import weight_grad, write_source_grads
from ..joined_linear.product import joined_linear
from ..joined_linear.sources import windows


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, window: int) -> Tensor:
    """x [B, N, C], prepared weight [O, k**2, C] -> GELU(linear) [B, N / k**2, O]."""
    return joined_linear(windows(x, window), weight.contiguous().flatten(1), bias).view(len(x), -1, weight.shape[0])


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, window: int, needs_weight: bool, needs_x: bool
) -> list[Tensor]:
    """Gradients [dweight, dbias] and [dx] as needed, of the gradient [B, N / k**2, O]."""
    flat = weight.contiguous().flatten(1)
    sources = windows(x, window)
    grad = joined_linear(sources, flat, bias, grad.contiguous().flatten(0, 1))
    grads = []
    if needs_weight:
        of_weight = weight_grad(sources, grad).view(weight.shape)
        grads += [of_weight, grad.sum(0, dtype=torch.float32).to(grad.dtype)]
    if needs_x:
        # Windows do not overlap and cover the grid: every element is written once.
        of_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        write_source_grads(windows(of_x, window), flat, grad)
        grads.append(of_x)
    return grads
