"""The views of images that fine-tuning trains on: crop, flip, RandAugment, normalise, erase; in batch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_stf.encoders.labelled import Encoder, Labelled
from llava_stf.encoders.mixing import erase
from llava_stf.encoders.pretrain.augment import crop, normalize, random_boxes
from llava_stf.encoders.pretrain.data import default_side, square
from llava_stf.encoders.randaugment import RandAugment
from llava_stf.models.vision.vits import CIFAR_SIZE

Crop = Literal["resized", "padded"]
_PADDING = 4
_CROP_SCALE = (0.08, 1.0)


def takes_whole_images(encoder: Encoder, how: Crop | None) -> bool:
    """Whether images are shifted in training and whole in tests: by default those of CIFAR's size or less."""
    return how == "padded" or (how is None and encoder.size <= CIFAR_SIZE)


class TrainingViews:
    """Random views of the training part by the numbers of its images, from torch's global generators.

    Raises:
        MissingDependencyError: kornia is not installed.
    """

    def __init__(self, encoder: Encoder, part: Labelled, how: Crop | None, magnitude: float, erasing: float) -> None:
        self.encoder, self.part, self.erasing = encoder, part, erasing
        self.padded = takes_whole_images(encoder, how)
        self.side = encoder.size if self.padded else default_side(part.images, encoder.size)
        self.colours = RandAugment(magnitude, fill=encoder.mean) if magnitude else None

    def __call__(self, numbers: Tensor) -> Tensor:
        """Views, float [b, 3, size, size], normalised, on the encoder's device."""
        encoder = self.encoder
        images = torch.stack([square(self.part.images[int(number)], self.side) for number in numbers])
        images = images.to(encoder.device).float() / 255
        pixels = shifted(images, _PADDING) if self.padded else self._cropped(images)
        flipped = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
        pixels = torch.where(flipped, pixels.flip(-1), pixels)
        if self.colours is not None:
            pixels = self.colours(pixels)
        return erase(normalize(pixels, encoder.mean, encoder.std), self.erasing)

    def _cropped(self, images: Tensor) -> Tensor:
        boxes = random_boxes(len(images), images.shape[-2:], _CROP_SCALE, device=images.device)
        return crop(images, boxes, self.encoder.size, "bicubic").clamp(0, 1)


def shifted(images: Tensor, padding: int) -> Tensor:
    """Square images [B, 3, S, S] with a black border, each cut to its size at a random place."""
    side = images.shape[-1]
    corners = torch.randint(2 * padding + 1, (len(images), 2), device=images.device)
    boxes = F.pad(corners, (0, 2), value=side).float()
    return crop(F.pad(images, (padding,) * 4), boxes, side, "nearest")
