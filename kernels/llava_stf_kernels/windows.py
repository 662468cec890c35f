"""How patches lie in windows, and in which order a checkpoint joins them.

Patches are in raster order on a square grid. A window is k x k patches; windows are in raster order, too. A checkpoint
joins a window channel-major: element `c*k*k + dy*k + dx` is channel c of the patch at row dy, column dx, the order of
`pixel_unshuffle` and of a k x k convolution's weight.
"""

from __future__ import annotations

import math

from torch import Tensor


def grid_side(patches: int, window: int) -> int:
    """Patches per side of the grid.

    Raises:
        ValueError: the grid is not square, or the window does not divide it.
    """
    side = math.isqrt(patches)
    if window < 1 or side * side != patches or side % window:
        raise ValueError(f"Windows of {window}x{window} need a square grid they divide, found {patches} patches.")
    return side


def gather_windows(x: Tensor, window: int) -> Tensor:
    """Join the patches of each window, channel-major: [B, N, C] -> [B, N / k**2, C * k**2], a copy."""
    batch, patches, channels = x.shape
    side = grid_side(patches, window) // window
    x = x.reshape(batch, side, window, side, window, channels)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(batch, side * side, channels * window * window)
