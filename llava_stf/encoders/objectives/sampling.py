"""Asymmetric patch sampling: some patches of view 1, and those of view 2 that show little of the same.

See docs/encoders/methods.md, APS, Sampling.

View 1 is cut into disjoint random subsets. For each of them, the chosen patches are placed on view 2, and patch b of
view 2 is taken with a probability that grows with the share of it that stays free:

    rho_b = 1 - area(b under the chosen patches) / area(b)          P_b = rho_b^gamma / sum rho^gamma

Boxes are (y, x, h, w) in pixels of the source image. Letters: B images, G patches per side of a view, N = G * G
patches in raster order, K subsets, n patches per subset.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_stf.errors import LlavaStfError

_COVERED = 1e-6  # a patch with less than this share free counts as fully covered


def free_share(boxes1: Tensor, boxes2: Tensor, chosen: Tensor, grid: int) -> Tensor:
    """rho: the share of every patch of view 2 that no chosen patch of view 1 covers; float64 [B, N], in [0, 1].

    Args:
        boxes1: [B, 4], the crops of view 1.
        boxes2: [B, 4], the crops of view 2.
        chosen: int64 [B, n], patches of view 1.
        grid: G.
    """
    boxes1, boxes2 = boxes1.double(), boxes2.double()
    down = _shared_lengths(boxes1[:, 0], boxes1[:, 2], boxes2[:, 0], boxes2[:, 2], grid)
    across = _shared_lengths(boxes1[:, 1], boxes1[:, 3], boxes2[:, 1], boxes2[:, 3], grid)
    mask = down.new_zeros(len(chosen), grid * grid).scatter_(1, chosen, 1).view(-1, grid, grid)
    # A cell's area under patch (r, c) is a product of two lengths, so the sum over chosen patches is two products.
    covered = down.transpose(1, 2) @ mask @ across
    area = boxes2[:, 2] * boxes2[:, 3] / grid**2
    free = (1 - covered / area[:, None, None]).clamp(0, 1).flatten(1)
    return torch.where(free < _COVERED, 0, free)


def _shared_lengths(start1: Tensor, length1: Tensor, start2: Tensor, length2: Tensor, grid: int) -> Tensor:
    """Along one axis: what patch i of crop 1 and patch j of crop 2 share, in source pixels; [B] each -> [B, G, G]."""
    step = torch.arange(grid, device=start1.device, dtype=start1.dtype)
    size1, size2 = length1 / grid, length2 / grid
    edge1 = start1[:, None] + step * size1[:, None]
    edge2 = start2[:, None] + step * size2[:, None]
    start = torch.maximum(edge1[:, :, None], edge2[:, None, :])
    end = torch.minimum((edge1 + size1[:, None])[:, :, None], (edge2 + size2[:, None])[:, None, :])
    return (end - start).clamp(min=0)


def selection_probabilities(free: Tensor, power: float) -> Tensor:
    """P: free^power, normalised over the patches; [B, N] -> [B, N]. All zero where a view is covered completely."""
    raised = torch.where(free > 0, free**power, 0)
    return raised / raised.sum(dim=1, keepdim=True).clamp(min=torch.finfo(raised.dtype).tiny)


def draw(probabilities: Tensor, count: int) -> Tensor:
    """`count` patches per row without replacement: [B, N] -> int64 [B, count].

    They are drawn as if one after the other with renormalised probabilities, by a race of exponential clocks for the
    whole batch at once. Uses torch's global generator.

    Raises:
        LlavaStfError: fewer than `count` patches have a probability.
    """
    fewest = int((probabilities > 0).sum(dim=1).min())
    if fewest < count:
        raise LlavaStfError(
            f"{count} patches of view 2 are asked for, but view 1's chosen patches leave only {fewest} of one image "
            "free: lower the sampling ratio, or raise the lower end of the crop scale"
        )
    clocks = torch.empty_like(probabilities).exponential_() / probabilities
    return torch.where(probabilities > 0, clocks, torch.inf).topk(count, largest=False).indices


def sparse_subsets(batch: int, patches: int, subsets: int, count: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Disjoint random subsets of each image's patches; int64 [batch, subsets, count], from torch's generator.

    Raises:
        LlavaStfError: there are not enough patches for that many disjoint subsets.
    """
    if count < 1 or subsets * count > patches:
        raise LlavaStfError(
            f"{subsets} disjoint subsets of {count} patches need at least one patch each and {subsets * count} in all, "
            f"a view has {patches}: change the number of subsets or the sampling ratio"
        )
    order = torch.rand(batch, patches, device=device).argsort(dim=1)
    return order[:, : subsets * count].unflatten(1, (subsets, count))


def sample_subsets(
    boxes1: Tensor, boxes2: Tensor, grid: int, *, ratio: float = 0.25, subsets: int = 4, power: float = 3.0
) -> tuple[Tensor, Tensor]:
    """The patches of view 1 and of view 2 for every subset: int64 [B, K, n] each, n = int(ratio * G * G).

    `boxes1` and `boxes2`, [B, 4], are the crops. Uses torch's global generator.

    Raises:
        LlavaStfError: the subsets do not fit into a view, or too few patches of view 2 are free.
    """
    count = int(ratio * grid**2)
    chosen1 = sparse_subsets(len(boxes1), grid**2, subsets, count, device=boxes1.device)
    chosen2 = [
        draw(selection_probabilities(free_share(boxes1, boxes2, chosen, grid), power), count)
        for chosen in chosen1.unbind(1)
    ]
    return chosen1, torch.stack(chosen2, dim=1)
