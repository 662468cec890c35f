"""`fuse_windows` in plain torch: what the kernel must equal, and the path without one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..windows import gather_windows


def naive_fuse_windows(x: Tensor, weight: Tensor, bias: Tensor | None, window: int) -> Tensor:
    """GELU(linear) [B, N / k**2, O] of x [B, N, C], weight [O, C * k**2], bias [O]; products accumulate in float32."""
    return F.gelu(F.linear(gather_windows(x, window), weight, bias))
