"""How patches lie in windows, and how a checkpoint's columns follow from it.

Patches are in raster order on a square grid. A window is k x k patches; windows are in raster order, too. A checkpoint
joins a window channel-major: element `c*k*k + dy*k + dx` is channel c of the patch at row dy, column dx, the order of
`pixel_unshuffle` and of a k x k convolution's weight.
"""

from __future__ import annotations

import math

from torch import Tensor


def grid_side(patches: int, window: int) -> int:
    """Patches per side of the grid. Raises `ValueError` unless the grid is square and the window divides it."""
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


def window_places(x: Tensor, window: int) -> list[Tensor]:
    """Views of the patches at each place of a window: k*k tensors [B, g/k, g/k, C] of [B, N, C], raster order."""
    grid = x.unflatten(1, (-1, grid_side(x.shape[1], window)))
    return [grid[:, dy::window, dx::window] for dy in range(window) for dx in range(window)]


def prepare_window_weight(weight: Tensor, window: int) -> Tensor:
    """Re-lay a checkpoint's weight by places: [O, C * k**2], channel-major -> [O, k**2, C], a copy.

    A kernel then reads the C weights of one patch as one run. `restore_window_weight` is the way back.
    """
    if weight.shape[1] % window**2:
        raise ValueError(
            f"Windows of {window}x{window} need a multiple of {window**2} columns, found {weight.shape[1]}."
        )
    return weight.unflatten(1, (-1, window * window)).transpose(1, 2).contiguous()


def restore_window_weight(weight: Tensor) -> Tensor:
    """The checkpoint's order of a prepared weight: [O, k**2, C] -> [O, C * k**2], a copy."""
    return weight.transpose(1, 2).flatten(1)
