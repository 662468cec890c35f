"""Images with mixed labels: mixup (arXiv 1710.09412), CutMix (1905.04899), label smoothing; and random erasing.

kornia's are others: its mixup draws a uniform share per image, its CutMix a box per image that lies within it, its
RandomErasing fills with one colour; the protocols draw one Beta share per batch, clip boxes and fill with noise.
Letters: B images of a batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_stf.encoders.pretrain.augment import random_boxes

_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """1 - s + s / C at the label, s / C elsewhere: int64 [B] -> float32 [B, C]."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def mix_batch(
    pixels: Tensor, targets: Tensor, *, mixup: float, cutmix: float, switch: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Every image with the one at the other end of the batch, one share for all of them: pixels, targets.

    Args:
        pixels: [B, 3, H, W].
        targets: [B, C].
        mixup: the share is of a Beta distribution with both parameters this; 0: not done.
        cutmix: the same of CutMix.
        switch: probability of CutMix where both are done.
    """
    cuts = cutmix > 0 and (mixup == 0 or torch.rand(()).item() < switch)
    if not cuts and mixup == 0:
        return pixels, targets
    alpha = cutmix if cuts else mixup
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    if cuts:
        pixels, share = paste(pixels, share)
    else:
        pixels = share * pixels + (1 - share) * pixels.flip(0)
    return pixels, share * targets + (1 - share) * targets.flip(0)


def paste(pixels: Tensor, share: float) -> tuple[Tensor, float]:
    """Pixels with a rectangle from the image at the other end of the batch, and the share of each image that is left.

    The rectangle has 1 - `share` of the area and its middle anywhere; the part beyond the border is lost.
    """
    height, width = pixels.shape[-2:]
    edges = []
    for length in (height, width):
        cut, middle = int(length * (1 - share) ** 0.5), int(torch.randint(length, ()))
        edges += [max(middle - cut // 2, 0), min(middle + cut // 2, length)]
    top, bottom, left, right = edges
    mixed = pixels.clone()
    mixed[..., top:bottom, left:right] = pixels.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def erase(pixels: Tensor, probability: float) -> Tensor:
    """A rectangle of 2 % to a third of the area replaced by normal noise, in each image with `probability`.

    `pixels` are normalised, [B, 3, H, W].
    """
    height, width = pixels.shape[-2:]
    boxes = random_boxes(len(pixels), (height, width), _ERASED_AREA, _ERASED_RATIO, device=pixels.device)
    y, x, h, w = boxes[..., None, None].unbind(1)
    rows = torch.arange(height, device=pixels.device)[:, None]
    columns = torch.arange(width, device=pixels.device)
    inside = (rows >= y) & (rows < y + h) & (columns >= x) & (columns < x + w)
    chosen = torch.rand(len(pixels), 1, 1, device=pixels.device) < probability
    return torch.where((inside & chosen)[:, None], torch.randn_like(pixels), pixels)
