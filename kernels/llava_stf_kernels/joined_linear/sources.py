"""Where the rows of a joined product lie: in several tensors, or in windows of one, in neither case copied together.

Row [b, r, q] of source s begins `first + b * stride_b + r * stride_r + q * stride_q` elements into the source's tensor,
and, where all sources share one tensor, `(s // window) * jump_r + (s % window) * jump_q` further on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import triton
from torch import Tensor

from ..windows import grid_side


@dataclass(slots=True)
class Sources:
    """S sources of a product, alike in shape and strides, each [B, R, Q, C] with contiguous channels."""

    tensors: tuple[Tensor, ...]  # one for each source, or one for all
    count: int  # S
    window: int  # of one shared tensor; 1 where each source has its own
    numbers: dict[str, int]  # what the kernels take of shape and strides

    @property
    def rows(self) -> int:
        return self.numbers["rows"]

    @property
    def channels(self) -> int:
        return self.numbers["channels"]


def tower_states(states: Sequence[Tensor]) -> Sources:
    """The patches of K states [B, 1 + N, C], R = 1 and Q = N; a copy only of states that are laid out differently."""
    strides = states[0].stride()
    if strides[2] != 1 or any(state.stride() != strides for state in states):
        states = [state.contiguous() for state in states]
        strides = states[0].stride()
    batch, tokens, channels = states[0].shape
    numbers = _numbers(batch, 1, tokens - 1, channels, first=strides[1], strides=(strides[0], 0, strides[1]))
    return Sources(tuple(states), len(states), 1, numbers)


def windows(x: Tensor, window: int) -> Sources:
    """The k*k places of each window of x [B, N, C], R = Q = g / k; a copy only where channels are not contiguous."""
    if x.stride(2) != 1:
        x = x.contiguous()
    batch, patches, channels = x.shape
    grid = grid_side(patches, window)
    side, (stride_b, stride_n, _) = grid // window, x.stride()
    strides = (stride_b, window * grid * stride_n, window * stride_n)
    numbers = _numbers(batch, side, side, channels, strides=strides, jumps=(grid * stride_n, stride_n))
    return Sources((x,), window * window, window, numbers)


def _numbers(
    batch: int,
    rows_r: int,
    rows_q: int,
    channels: int,
    *,
    strides: tuple[int, int, int],
    first: int = 0,
    jumps: tuple[int, int] = (0, 0),
) -> dict[str, int]:
    rows = batch * rows_r * rows_q
    return {
        "rows": rows,
        "rows_bucket": triton.next_power_of_2(rows),  # sizes of one bucket share their tiles
        "rows_r": rows_r,
        "rows_q": rows_q,
        "channels": channels,
        "first": first,
        "stride_b": strides[0],
        "stride_r": strides[1],
        "stride_q": strides[2],
        "jump_r": jumps[0],
        "jump_q": jumps[1],
    }
