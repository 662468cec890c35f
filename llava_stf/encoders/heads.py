"""Projection and prediction heads: the MLPs behind an encoder, and their batch statistics over processes."""

from __future__ import annotations

from torch import nn


def mlp_head(width: int, hidden: int, out: int, *, layers: int) -> nn.Sequential:
    """Linear layers without bias, `width` -> `hidden` -> ... -> `out` (docs/encoders/methods.md, Heads).

    Each is followed by BatchNorm and ReLU; the last by a BatchNorm without affine parameters.

    With three layers the Linear modules are numbers 0, 3, 6 of the Sequential and the BatchNorms 1, 4, 7: checkpoint
    keys of the released codes. Input and output are [rows, features].
    """
    modules: list[nn.Module] = []
    for number in range(layers):
        last = number == layers - 1
        modules.append(nn.Linear(hidden if number else width, out if last else hidden, bias=False))
        modules.append(nn.BatchNorm1d(out, affine=False) if last else nn.BatchNorm1d(hidden))
        if not last:
            modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules)
