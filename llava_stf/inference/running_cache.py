"""The cache of rows that come and go while others are answered.

All rows end at the same column, so that a step writes one column of all of them in place, whatever their lengths; what
stands before a row is padding. A row that joins is copied in, and where one leaves, the last one takes its place.

Shapes: B rows, W columns from the begin of the longest of them on, n tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE = 64  # columns behind the last one, before all rows are moved to the begin again


class RunningCache(Cache):
    """Keys and values of the rows of a running batch.

    Attributes:
        lengths: tokens of each row.
    """

    layers: list[Any]

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self._end = 0  # of the columns in use

    def join(self, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Takes in another row, behind the others: keys and values [heads, n, head width] of each layer."""
        length, row = states[0][0].shape[1], len(self.lengths)
        if not self.layers:
            self.layers = [
                _Layer(*(each.new_zeros(0, len(each), 0, each.shape[2]) for each in pair)) for pair in states
            ]
        if row == len(self.layers[0].buffers[0]) or length > self._end:
            self._move(row + 1, max(length, *self.lengths, 0))
        for layer, pair in zip(self.layers, states, strict=True):
            for buffer, state in zip(layer.buffers, pair, strict=True):
                buffer[row, :, : self._end - length] = 0  # nobody reads it, but a NaN there would be one everywhere
                buffer[row, :, self._end - length : self._end] = state
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """Forgets a row; the last one has its number from now on."""
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[row, :, : self._end] = buffer[len(self.lengths) - 1, :, : self._end]
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()
        if not self.lengths:
            self.layers, self._end = [], 0

    def states_of(self, row: int) -> list[tuple[Tensor, Tensor]]:
        """Copies of a row's keys and values [heads, n, head width] of each layer."""
        columns = slice(self._end - self.lengths[row], self._end)
        return [
            (layer.buffers[0][row, :, columns].clone(), layer.buffers[1][row, :, columns].clone())
            for layer in self.layers
        ]

    def next_column(self) -> tuple[Tensor, Tensor]:
        """Has each row take in one more token with the next pass of the model: mask [B, W + 1] and positions [B, 1]."""
        width = max(self.lengths)
        if self._end == self.layers[0].buffers[0].shape[2]:
            self._move(len(self.lengths), width)
        for layer in self.layers:
            layer.show(len(self.lengths), self._end - width, self._end)
        lengths = torch.tensor(self.lengths)[:, None]
        mask = (torch.arange(width + 1) >= width - lengths).long()
        self.lengths = [length + 1 for length in self.lengths]
        self._end += 1
        return mask, lengths

    def _move(self, rows: int, end: int) -> None:
        """Moves all rows, so that they end at this column, into room for so many rows and `SPARE` more columns."""
        width = max(self.lengths, default=0)
        for layer in self.layers:
            moved = []
            for buffer in layer.buffers:
                room = buffer.new_zeros(_power_of_two(rows), buffer.shape[1], end + SPARE, buffer.shape[3])
                held = buffer[: len(self.lengths), :, self._end - width : self._end]
                room[: len(held), :, end - width : end] = held
                moved.append(room)
            layer.buffers = tuple(moved)
        self._end = end


class _Layer(DynamicLayer):
    """One layer: buffers [rows, heads, columns, head width], of which `keys` and `values` show what is in use."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.buffers: tuple[Tensor, ...] = (keys, values)
        self.is_initialized = True
        self._first = self._end = 0

    def show(self, rows: int, first: int, end: int) -> None:
        """Lets `keys` and `values` be these columns of the first rows."""
        self._first, self._end = first, end
        self.keys, self.values = (buffer[:rows, :, first:end] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one column [B, heads, 1, head width]; keys and values [B, heads, W + 1, head width]."""
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: len(states), :, self._end : self._end + 1] = states
        self.show(len(key_states), self._first, self._end + 1)
        return self.keys, self.values


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
