"""`pool_tokens` in plain torch: what the kernel must equal, and the path without one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..windows import grid_side


def naive_pool_tokens(x: Tensor, window: int) -> Tensor:
    """Input x [B, N, C] -> mean of each k x k window of patches [B, N / k**2, C]; sums in float32 or wider."""
    grid = x.unflatten(1, (-1, grid_side(x.shape[1], window)))
    wide = torch.promote_types(x.dtype, torch.float32)
    # Faster on a CPU than a mean over two dimensions.
    places = [grid[:, dy::window, dx::window].to(wide) for dy in range(window) for dx in range(window)]
    return torch.stack(places).mean(0).to(x.dtype).flatten(1, 2)
