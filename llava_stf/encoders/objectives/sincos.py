"""Fixed position tables of sines and cosines (docs/encoders/methods.md, Encoder)."""

from __future__ import annotations

import torch
from torch import Tensor

from llava_stf.errors import LlavaStfError


def sincos_table(width: int, grid: int) -> Tensor:
    """The 2-D sine-cosine table with a zero row for the class token; float32 [1, 1 + grid * grid, width].

    With frequencies w_k = 10000^(-4k / width), k = 0 .. width / 4 - 1, the row of the patch in row r, column c is
    [sin(r w), cos(r w), sin(c w), cos(c w)].

    Raises:
        LlavaStfError: 4 does not divide `width`.
    """
    if width % 4:
        raise LlavaStfError(f"a sine-cosine table needs a width that 4 divides, found {width}")
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    table = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return torch.cat([table.new_zeros(1, width), table])[None].float()
