"""RandAugment (arXiv 1909.13719) in batch, each image with its own draws: what timm calls rand-m9-mstd0.5-inc1.

Each image goes through `layers` operations of fifteen, drawn with replacement; each is carried out with probability
`probability`, at a strength of its own around `magnitude`, and stronger always means further from the image as it is.
timm works on 8-bit images, rounds after every operation and samples moved images bilinearly or bicubically, as a
coin falls; here all is in floating point and bilinear. kornia's RandAugment draws an operation per batch and adds to
brightness where PIL multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_stf.encoders.pretrain.augment import kornia_part
from llava_stf.models.vision.vits import IMAGENET_MEAN

_HIGHEST = 10  # magnitude that counts as full strength
_GRAY = (0.299, 0.587, 0.114)
_ROTATION, _SHEAR, _SHIFT, _BLEND, _ADDED = 30.0, 0.3, 0.45, 0.9, 110  # degrees, slope, share, factor, of 255

# Pixels [n, 3, S, S] in [0, 1], strengths [n] in [0, 1], signs [n] of -1 or 1 -> pixels.
Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


class RandAugment:
    """RandAugment as a function of images, from torch's global generators.

    Args:
        magnitude: mean strength, of 10.
        deviation: of the strength.
        layers: operations drawn per image.
        probability: of carrying out one that was drawn.
        fill: colour of what moves in from outside, in [0, 1].

    Raises:
        MissingDependencyError: kornia is not installed.
    """

    def __init__(
        self,
        magnitude: float = 9.0,
        *,
        deviation: float = 0.5,
        layers: int = 2,
        probability: float = 0.5,
        fill: Sequence[float] = IMAGENET_MEAN,
    ) -> None:
        self.magnitude, self.deviation = magnitude, deviation
        self.layers, self.probability = layers, probability
        self.operations = operations(fill)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Square images, float [B, 3, S, S] in [0, 1] -> the same."""
        count, device = len(pixels), pixels.device
        for _ in range(self.layers):
            drawn = torch.randint(len(self.operations), (count,), device=device)
            drawn[torch.rand(count, device=device) >= self.probability] = -1
            strength = torch.randn(count, device=device) * self.deviation + self.magnitude
            strength = strength.clamp(0, _HIGHEST) / _HIGHEST
            sign = torch.randint(0, 2, (count,), device=device) * 2 - 1
            for number, operation in enumerate(self.operations.values()):
                chosen = (drawn == number).nonzero()[:, 0]
                if len(chosen):
                    changed = operation(pixels[chosen], strength[chosen], sign[chosen])
                    pixels = pixels.index_copy(0, chosen, changed.clamp(0, 1))
        return pixels


def operations(fill: Sequence[float]) -> dict[str, Operation]:
    """The fifteen operations by name.

    Raises:
        MissingDependencyError: kornia is not installed.
    """
    equalize = kornia_part("enhance").equalize

    def moved(axes: str) -> Operation:
        return lambda pixels, strength, sign: move(pixels, _matrices(axes, strength * sign), fill)

    return {
        "auto_contrast": lambda pixels, strength, sign: auto_contrast(pixels),
        # A hair above each of the 256 levels, since what follows cuts digits off.
        "equalize": lambda pixels, strength, sign: equalize(((pixels * 255).round() / 255 + 1e-4).clamp(0, 1)),
        "invert": lambda pixels, strength, sign: 1 - pixels,
        "rotate": moved("rotate"),
        "posterize": lambda pixels, strength, sign: posterize(pixels, 4 - (strength * 4).long()),
        "solarize": lambda pixels, strength, sign: solarize(pixels, 256 - (strength * 256).long()),
        "solarize_add": lambda pixels, strength, sign: solarize_add(pixels, (strength * _ADDED).long()),
        "color": lambda pixels, strength, sign: blend(_gray(pixels), pixels, strength * sign),
        "contrast": lambda pixels, strength, sign: blend(
            _gray(pixels).mean((1, 2, 3), keepdim=True), pixels, strength * sign
        ),
        "brightness": lambda pixels, strength, sign: blend(torch.zeros_like(pixels), pixels, strength * sign),
        "sharpness": lambda pixels, strength, sign: blend(smooth(pixels), pixels, strength * sign),
        "shear_x": moved("shear_x"),
        "shear_y": moved("shear_y"),
        "translate_x": moved("translate_x"),
        "translate_y": moved("translate_y"),
    }


def auto_contrast(pixels: Tensor) -> Tensor:
    """Each channel stretched to reach from 0 to 1; one of a single value stays."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(high > low, (pixels - low) / (high - low).clamp(min=1e-6), pixels)


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    """Only the highest `bits`, int64 [n], of each value's eight."""
    step = 2 ** (8 - _each(bits))
    return (pixels * 255).round().long() // step * step / 255


def solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Values from `threshold` on, int64 [n] of 255, inverted."""
    return torch.where((pixels * 255).round() >= _each(threshold), 1 - pixels, pixels)


def solarize_add(pixels: Tensor, added: Tensor) -> Tensor:
    """`added`, int64 [n] of 255, on the darker half of the values."""
    return torch.where((pixels * 255).round() < 128, pixels + _each(added) / 255, pixels)


def blend(other: Tensor, pixels: Tensor, change: Tensor) -> Tensor:
    """Towards `other` for a negative change, [n] in [-1, 1], away from it for a positive one; clipped to [0, 1]."""
    factor = _each((1 + _BLEND * change).clamp(min=0.1))
    return (other + factor * (pixels - other)).clamp(0, 1)


def smooth(pixels: Tensor) -> Tensor:
    """Each pixel five times and its eight neighbours once, over 13; the border stays."""
    kernel = pixels.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smoothed = pixels.clone()
    smoothed[..., 1:-1, 1:-1] = F.conv2d(pixels, kernel / 13, groups=3)
    return smoothed


def move(pixels: Tensor, matrices: Tensor, fill: Sequence[float]) -> Tensor:
    """`pixels` sampled at the places that `matrices`, [n, 2, 3] of `affine_grid`, give; `fill` outside."""
    grid = F.affine_grid(matrices, list(pixels.shape), align_corners=False)
    colour = pixels.new_tensor(fill).view(3, 1, 1)
    return F.grid_sample(pixels - colour, grid, align_corners=False) + colour


def _matrices(kind: str, change: Tensor) -> Tensor:
    """Where the pixels of the result lie in the image: [n, 2, 3], for changes [n] in [-1, 1].

    Slopes are counted from the upper left corner, half a side, 1 in these coordinates, from the middle.
    """
    one, none = torch.ones_like(change), torch.zeros_like(change)
    slope, shift, angle = _SHEAR * change, 2 * _SHIFT * change, -math.radians(_ROTATION) * change
    rows = {
        "rotate": [[angle.cos(), angle.sin(), none], [-angle.sin(), angle.cos(), none]],
        "shear_x": [[one, slope, slope], [none, one, none]],
        "shear_y": [[one, none, none], [slope, one, slope]],
        "translate_x": [[one, none, shift], [none, one, none]],
        "translate_y": [[one, none, none], [none, one, shift]],
    }[kind]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _gray(pixels: Tensor) -> Tensor:
    return (pixels * pixels.new_tensor(_GRAY).view(3, 1, 1)).sum(dim=1, keepdim=True)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
