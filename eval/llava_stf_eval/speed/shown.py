"""What each prompt of a measurement shows, and how many LLM tokens that is: one image, or the frames of one video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers import LlavaConfig

from llava_stf.errors import LlavaStfError
from llava_stf.models.fusion.budget import ImageSizes, patch_grid, tokens_in_window
from llava_stf.models.fusion.tiles import has_tiles
from llava_stf.models.fusion.video_processing import pixels_of_frames
from llava_stf.models.fusion.videos import require_videos, tokens_of_frames


@dataclass(frozen=True)
class Shown:
    """One image, or with `frames` one video of so many, of random pixels.

    Attributes:
        size: height and width of the image, or of a frame.
        frames: of the video.
    """

    size: tuple[int, int] = (480, 640)
    frames: int | None = None

    @property
    def image_sizes(self) -> ImageSizes:
        """Of the images of a prompt."""
        return [self.size] if self.frames is None else []

    @property
    def videos(self) -> list[int]:
        """Frames of each video of a prompt."""
        return [] if self.frames is None else [self.frames]

    def check(self, config: LlavaConfig) -> None:
        """Check that a model of this config can be shown it.

        Raises:
            FusionError: the model takes no videos.
            LlavaStfError: a number is not positive.
        """
        for name, value in (("height", self.size[0]), ("width", self.size[1]), ("frames", self.frames)):
            if value is not None and value < 1:
                raise LlavaStfError(f"{name} must be at least 1, found {value}.")
        if self.frames is not None:
            require_videos(config)

    def tokens(self, config: LlavaConfig, window: int) -> int:
        """LLM tokens in a model of this config whose windows have that side."""
        images = tokens_in_window(config, self.image_sizes, window)
        return sum([*images, *tokens_of_frames(config, self.videos, patch_grid(config), window)])

    def draw(self, generator: np.random.Generator, prompts: int) -> list[list[Image.Image]]:
        """For each prompt its image, or its frames."""
        return [
            [
                Image.fromarray(generator.integers(0, 256, (*self.size, 3), dtype=np.uint8))
                for _ in range(self.frames or 1)
            ]
            for _ in range(prompts)
        ]

    def prepare(self, image_processor: Any, prompts: list[list[Image.Image]]) -> dict[str, Any]:
        """What the model is given of them."""
        if self.frames is not None:
            return {"pixel_values_videos": pixels_of_frames(image_processor, prompts)}
        nested = prompts if has_tiles(image_processor) else [image for images in prompts for image in images]
        return dict(image_processor(nested, return_tensors="pt"))
