"""Which cells of two crops of an image show the same place (docs/encoders/methods.md, MGC, Correspondence).

A grain cuts a view into L x L cells. The cells of view 1 that lie in the overlap O of both crops are visited with a
stride; each pairs up with all cells of view 2 that it shares area with:

    weight = (source area that the two cells share) / (A1 + A2),  A_v the source area of one cell of view v: (0, 1/2]

The heaviest pairs are kept; missing ones are filled up by (0, 0) of weight 0. All is done in float32 and in the
released code's order, since a rounded number decides in which cell the overlap begins.

Boxes are (y, x, h, w) in pixels of the source image; letters: B images, S pixels of a view's side, L cells per
side, R visited rows or columns, K pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_stf.encoders.pretrain.augment import random_boxes
from llava_stf.errors import LlavaStfError


@dataclass(frozen=True)
class Grain:
    """One size of cells.

    Attributes:
        cell: side of a cell in pixels of the view; g.
        max_pairs: K, pairs kept per image.
        row_ratio: row stride per IoU of the crops.
        col_ratio: column stride per IoU of the crops.
        row_clamp: smallest and largest row stride.
        col_clamp: smallest and largest column stride.
    """

    cell: int
    max_pairs: int
    row_ratio: int
    col_ratio: int
    row_clamp: tuple[int, int]
    col_clamp: tuple[int, int]


FINE = Grain(cell=16, max_pairs=10, row_ratio=12, col_ratio=8, row_clamp=(2, 8), col_clamp=(2, 6))
MIDDLE = Grain(cell=32, max_pairs=10, row_ratio=8, col_ratio=4, row_clamp=(2, 4), col_clamp=(1, 3))
COARSE = Grain(cell=112, max_pairs=2, row_ratio=1, col_ratio=1, row_clamp=(1, 1), col_clamp=(1, 1))
_TRIES = 1000  # of a second crop that overlaps enough; then it is the whole image
_TIE = 1e-15  # what a pair found later weighs more among equal ones, less than float32 tells apart


class Pairs(NamedTuple):
    """Corresponding cells of two views, raster numbers as the (flipped) pixels show them."""

    index1: Tensor  # int64 [B, K], cells of view 1
    index2: Tensor  # int64 [B, K], cells of view 2
    weight: Tensor  # float32 [B, K], 0 where an image has fewer pairs


class _Axis(NamedTuple):
    """Rows, or columns, of view 1 that are visited, and what they share with those of view 2."""

    visited: Tensor  # int64 [B, R], numbers of the rows; may lie beyond the last where `shared` is 0
    shared: Tensor  # float32 [B, R, L], common length as a share of view 2's cell


def correspondence(
    boxes1: Tensor, boxes2: Tensor, flipped1: Tensor, flipped2: Tensor, grain: Grain, size: int = 224
) -> Pairs:
    """The K heaviest pairs per image in ascending order of weight, of equal ones those found last.

    Where there are no more than K, all as they are found (view-1 rows, columns, view-2 rows, columns), and then (0, 0)
    of weight 0.

    Args:
        boxes1: [B, 4], the crops of view 1.
        boxes2: [B, 4], the crops of view 2.
        flipped1: bool [B], views 1 that were mirrored after the crop.
        flipped2: bool [B], views 2 that were mirrored after the crop.
        grain: the cells, and how many pairs are kept.
        size: S.

    Raises:
        LlavaStfError: the cell does not divide the view.
    """
    every = candidates(boxes1, boxes2, flipped1, flipped2, grain, size)
    total = every.weight.shape[1]
    later = torch.arange(total, device=every.weight.device) * _TIE
    place = (every.weight.double() + later).topk(min(grain.max_pairs, total), dim=1).indices.flip(1)
    weight = every.weight.gather(1, place)
    few = ((every.weight > 0).sum(dim=1) <= grain.max_pairs)[:, None]
    in_order = torch.where(weight > 0, place, total).argsort(dim=1)
    order = torch.where(few, in_order, torch.arange(place.shape[1], device=place.device))
    place, weight = place.gather(1, order), weight.gather(1, order)
    index1, index2 = (torch.where(weight > 0, index.gather(1, place), 0) for index in (every.index1, every.index2))
    padding = 0, grain.max_pairs - place.shape[1]
    return Pairs(F.pad(index1, padding), F.pad(index2, padding), F.pad(weight, padding))


def candidates(
    boxes1: Tensor, boxes2: Tensor, flipped1: Tensor, flipped2: Tensor, grain: Grain, size: int = 224
) -> Pairs:
    """All combinations of a visited cell of view 1 and a cell of view 2, [B, R * R * L * L].

    They stand in the order in which they are found, with weight 0 where they share nothing. Arguments and errors as
    `correspondence`.
    """
    if size % grain.cell:
        raise LlavaStfError(f"cells of {grain.cell} pixels do not divide a view of {size} pixels")
    side = size // grain.cell
    boxes1, boxes2 = boxes1.float(), boxes2.float()
    overlap, ratio = box_intersection(boxes1, boxes2), box_iou(boxes1, boxes2)
    row_stride = (grain.row_ratio * ratio).long().clamp(*grain.row_clamp)
    col_stride = (grain.col_ratio * ratio).long().clamp(*grain.col_clamp)
    rows = _axis(boxes1[:, ::2], boxes2[:, ::2], overlap[:, ::2], row_stride, grain.row_clamp[0], grain.cell, size)
    cols = _axis(boxes1[:, 1::2], boxes2[:, 1::2], overlap[:, 1::2], col_stride, grain.col_clamp[0], grain.cell, size)

    area1, area2 = ((grain.cell / size * boxes[:, 2:]).prod(dim=1).view(-1, 1, 1, 1, 1) for boxes in (boxes1, boxes2))
    shared = rows.shared[:, :, None, :, None] * cols.shared[:, None, :, None, :]
    weight = shared * area2 / (area1 + area2)
    index1 = _numbers(rows.visited, cols.visited, flipped1, side)[:, :, :, None, None]
    every = torch.arange(side, device=boxes1.device).expand(len(boxes1), -1)
    index2 = _numbers(every, every, flipped2, side)[:, None, None]
    return Pairs(index1.expand_as(weight).flatten(1), index2.expand_as(weight).flatten(1), weight.flatten(1))


def box_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """The overlap of boxes (y, x, h, w), [..., 4] each -> [..., 4]; zeros where they do not meet."""
    start = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    extent = torch.minimum(boxes1[..., :2] + boxes1[..., 2:], boxes2[..., :2] + boxes2[..., 2:]) - start
    meets = (extent > 0).all(dim=-1, keepdim=True)
    return torch.where(meets, torch.cat([start, extent], dim=-1), 0)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of boxes (y, x, h, w), [..., 4] each -> [...]."""
    shared = box_intersection(boxes1, boxes2)[..., 2:].prod(-1)
    return shared / (boxes1[..., 2:].prod(-1) + boxes2[..., 2:].prod(-1) - shared)


def overlapping_boxes(boxes: Tensor, size: torch.Size, scale: tuple[float, float], min_iou: float) -> Tensor:
    """A random crop for each of `boxes`, float32 [B, 4], drawn again until their IoU exceeds `min_iou`.

    Where no try does, it is the whole image of `size` (height, width).
    """
    drawn = boxes.new_tensor([0, 0, *size]).expand_as(boxes)
    missing = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for _ in range(_TRIES):
        fresh = random_boxes(len(boxes), size, scale, device=boxes.device)
        fits = missing & (box_iou(boxes, fresh) > min_iou)
        drawn, missing = torch.where(fits[:, None], fresh, drawn), missing & ~fits
        if not missing.any():
            break
    return drawn


def to_view(boxes: Tensor, crop: Tensor, size: int = 224) -> Tensor:
    """Boxes in source pixels as pixels of the view that `crop` gives; (y, x, h, w), or (start, length) of one axis."""
    half = crop.shape[-1] // 2
    start, length = crop[..., :half], crop[..., half:]
    return torch.cat([(boxes[..., :half] - start) / length * size, boxes[..., half:] / length * size], dim=-1)


def to_source(boxes: Tensor, crop: Tensor, size: int = 224) -> Tensor:
    """Boxes in pixels of the view that `crop` gives, as source pixels; the reverse of `to_view`."""
    half = crop.shape[-1] // 2
    start, length = crop[..., :half], crop[..., half:]
    return torch.cat([boxes[..., :half] / size * length + start, boxes[..., half:] / size * length], dim=-1)


def _axis(crop1: Tensor, crop2: Tensor, overlap: Tensor, stride: Tensor, least: int, cell: int, size: int) -> _Axis:
    """One axis of the correspondence; crops and overlap are (start, length), [B, 2] each; R = ceil(L / least)."""
    side = size // cell
    within = to_view(overlap, crop1, size)
    step = torch.arange(-(-side // least), device=crop1.device)
    visited = (within[:, :1] / cell).floor().long() + step * stride[:, None]

    # Each visited row of view 1, cut to the overlap: in view 1, in the source, in view 2.
    start = torch.maximum((visited * cell).to(within.dtype), within[:, :1])
    end = torch.minimum((visited * cell + cell).to(within.dtype), within.sum(dim=1, keepdim=True))
    source = to_source(torch.stack([start, end - start], dim=-1), crop1[:, None], size)
    seen = to_view(source, crop2[:, None], size)
    seen = torch.stack([seen[..., 0].clamp(min=0), seen[..., 1]], dim=-1)

    # Rows beyond the overlap have no length left, or less than none, and share nothing.
    edge = torch.arange(side, device=crop1.device) * cell
    begin = torch.maximum(seen[..., :1], edge)
    finish = torch.minimum(seen.sum(dim=-1, keepdim=True), edge + cell)
    return _Axis(visited, (finish - begin).clamp(min=0) / cell)


def _numbers(rows: Tensor, columns: Tensor, flipped: Tensor, side: int) -> Tensor:
    """Raster numbers of the cells in `rows` and `columns`, [B, R] each, mirrored where `flipped`; int64 [B, R, R].

    Rows and columns beyond the view, which share nothing, get numbers within it.
    """
    columns = torch.where(flipped[:, None], side - 1 - columns, columns)
    return (rows[:, :, None] * side + columns[:, None, :]).clamp(0, side * side - 1)
