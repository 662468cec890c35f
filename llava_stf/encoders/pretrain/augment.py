"""Augmentations in batch, on the device of the images: crop and flip by one resampling, colours by kornia.

A crop's box is (y, x, h, w) in pixels of the source image; the flip comes after the crop and is not part of the box.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_stf.errors import MissingDependencyError
from llava_stf.models.vision.vits import IMAGENET_MEAN, IMAGENET_STD

_TRIES = 10  # of a crop's shape, before the largest crop of an allowed ratio is taken
_BLUR_KERNEL = 13  # three times the largest sigma to either side


class View(NamedTuple):
    """One augmented view of B images."""

    pixels: Tensor  # float [B, 3, size, size], normalised
    boxes: Tensor  # float32 [B, 4], (y, x, h, w) in pixels of the source
    flipped: Tensor  # bool [B]


@dataclass(frozen=True)
class Recipe:
    """What happens to a view, in this order: crop, colour jitter, grayscale, blur, solarise, flip, normalise.

    `size` is the view's side in pixels, `scale` the range of the crop's share of the image's area, `jitter` the
    strengths of brightness, contrast, saturation and hue; names with `_p` are probabilities per image.
    """

    size: int
    scale: tuple[float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.0
    solarize_p: float = 0.0
    flip_p: float = 0.5
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class Augmentation:
    """`Recipe` as a function of images. Draws from torch's global generators only, so a run's state holds it all.

    Raises:
        MissingDependencyError: kornia is not installed.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        kornia = kornia_part("augmentation")
        side = min(_BLUR_KERNEL, recipe.size - 1 + recipe.size % 2)  # odd, and no larger than the view
        self.colours = [
            kornia.ColorJitter(*recipe.jitter, p=recipe.jitter_p),
            kornia.RandomGrayscale(p=recipe.gray_p),
            kornia.RandomGaussianBlur((side, side), (0.1, 2.0), p=recipe.blur_p),
            kornia.RandomSolarize(thresholds=(128 / 255, 128 / 255), additions=(0.0, 0.0), p=recipe.solarize_p),
        ]

    def __call__(self, images: Tensor, boxes: Tensor | None = None) -> View:
        """A view of `images`, float [B, 3, H, W] in [0, 1]; `boxes` float32 [B, 4] in place of random ones."""
        recipe = self.recipe
        if boxes is None:
            boxes = random_boxes(len(images), images.shape[-2:], recipe.scale, device=images.device)
        pixels = crop(images, boxes, recipe.size, recipe.interpolation).clamp(0, 1)
        for colour in self.colours:
            pixels = colour(pixels)
        flipped = torch.rand(len(images), device=images.device) < recipe.flip_p
        pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
        return View(normalize(pixels, recipe.mean, recipe.std), boxes, flipped)


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std per channel, pixels [B, 3, H, W] in [0, 1]."""
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)


def random_boxes(
    count: int,
    size: Sequence[int],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Boxes of random resized crops in images of `size` (height, width): float32 [count, 4], whole pixels.

    Area uniform in `scale` of the image's, the logarithm of width / height uniform; of ten tries the first that fits,
    else the largest crop of an allowed ratio, in the middle.
    """
    height, width = size
    area = height * width * torch.empty(count, _TRIES, device=device).uniform_(*scale)
    aspect = torch.empty(count, _TRIES, device=device).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    wide, high = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (wide >= 1) & (wide <= width) & (high >= 1) & (high <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # 0 where none fits
    wide, high, fits = (drawn.gather(1, first)[:, 0] for drawn in (wide, high, fits))
    y = ((height - high + 1) * torch.rand(count, device=device)).floor()
    x = ((width - wide + 1) * torch.rand(count, device=device)).floor()
    drawn = torch.stack([y, x, high, wide], dim=1)
    whole_high, whole_wide = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    fallback = drawn.new_tensor([(height - whole_high) // 2, (width - whole_wide) // 2, whole_high, whole_wide])
    return torch.where(fits[:, None], drawn, fallback)


def crop(images: Tensor, boxes: Tensor, size: int, interpolation: str) -> Tensor:
    """The boxes (y, x, h, w) of float images [B, 3, H, W], each resized to [3, size, size], without antialiasing.

    Output pixel i of an axis samples the source at start + (i + 0.5) * extent / size - 0.5, as `interpolate` does with
    align_corners false; at the box's border bicubic sampling reads the pixels beyond it, of the same image.
    """
    height, width = images.shape[-2:]
    y, x, h, w = boxes.to(images.dtype).unbind(1)
    zero = torch.zeros_like(x)
    # affine_grid's coordinates: -1 and 1 are the outer edges of image and output.
    across = torch.stack([w / width, zero, (2 * x + w) / width - 1], dim=1)
    down = torch.stack([zero, h / height, (2 * y + h) / height - 1], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode=interpolation, padding_mode="border", align_corners=False)


def kornia_part(name: str) -> Any:
    """A module of kornia, "augmentation" say.

    Raises:
        MissingDependencyError: kornia is not installed.
    """
    try:
        return importlib.import_module(f"kornia.{name}")
    except ImportError as error:
        raise MissingDependencyError(
            "images are augmented with the package kornia: pip install 'llava-stf[encoders]'"
        ) from error
