"""`pool_tokens` in plain torch: what the kernel must equal, and the path without one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..windows import window_places


def naive_pool_tokens(states: Tensor, window: int) -> Tensor:
    """states [B, 1 + N, C] -> mean of each k x k window of patches [B, N / k**2, C]; sums in float32 or wider."""
    wide = torch.promote_types(states.dtype, torch.float32)
    places = [place.to(wide) for place in window_places(states[:, 1:], window)]
    return torch.stack(places).mean(0).to(states.dtype).flatten(1, 2)
