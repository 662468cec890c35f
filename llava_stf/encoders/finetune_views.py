"""The views of pictures that fine-tuning trains on: crop, flip, RandAugment, normalise, erase; in batch."""

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


def takes_whole_pictures(encoder: Encoder, how: Crop | None) -> bool:
    """Whether pictures are shifted in training and whole in tests: by default those of CIFAR's size or less."""
    return how == "padded" or (how is None and encoder.size <= CIFAR_SIZE)


class TrainingViews:
    """Random views of the training part by the numbers of its pictures, from torch's global generators.

    Raises `MissingDependencyError` without kornia.
    """

    def __init__(self, encoder: Encoder, part: Labelled, how: Crop | None, magnitude: float, erasing: float) -> None:
        self.encoder, self.part, self.erasing = encoder, part, erasing
        self.padded = takes_whole_pictures(encoder, how)
        self.side = encoder.size if self.padded else default_side(part.pictures, encoder.size)
        self.colours = RandAugment(magnitude, fill=encoder.mean) if magnitude else None

    def __call__(self, numbers: Tensor) -> Tensor:
        """float [b, 3, size, size], normalised, on the encoder's device."""
        encoder = self.encoder
        pictures = torch.stack([square(self.part.pictures[int(number)], self.side) for number in numbers])
        pictures = pictures.to(encoder.device).float() / 255
        pixels = shifted(pictures, _PADDING) if self.padded else self._cropped(pictures)
        flipped = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
        pixels = torch.where(flipped, pixels.flip(-1), pixels)
        if self.colours is not None:
            pixels = self.colours(pixels)
        return erase(normalize(pixels, encoder.mean, encoder.std), self.erasing)

    def _cropped(self, pictures: Tensor) -> Tensor:
        boxes = random_boxes(len(pictures), pictures.shape[-2:], _CROP_SCALE, device=pictures.device)
        return crop(pictures, boxes, self.encoder.size, "bicubic").clamp(0, 1)


def shifted(pictures: Tensor, padding: int) -> Tensor:
    """Square pictures [B, 3, S, S] with a black border, each cut to its size at a random place."""
    side = pictures.shape[-1]
    corners = torch.randint(2 * padding + 1, (len(pictures), 2), device=pictures.device)
    boxes = F.pad(corners, (0, 2), value=side).float()
    return crop(F.pad(pictures, (padding,) * 4), boxes, side, "nearest")
