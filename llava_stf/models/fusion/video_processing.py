"""What every processor of a model that takes videos does alike: frames are prepared as images are."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, ProcessorMixin

from llava_stf.errors import PromptError
from llava_stf.images.frames import Video
from llava_stf.models.fusion.processing import FusedProcessing
from llava_stf.models.llava_stf.vocabulary import ensure_pad_token


class FusedVideoProcessing(FusedProcessing):
    """As `FusedProcessing`, of a model that takes videos.

    Modifications: frames are prepared by Pillow as images are, whole and by the image processor's own settings, and no
    video processor (which needs torchvision) is asked for or saved. Stands for transformers' own `__init__`, too.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        fusion_window: int = 2,
        **kwargs: Any,
    ) -> None:
        """Keeps its parts.

        Args:
            image_processor: of images, and by its settings of frames.
            tokenizer: of the model.
            patch_size: of the tower, in pixels.
            chat_template: of the prompts.
            image_token: marker of an image.
            video_token: marker of a video.
            fusion_window: side k of a window in patches; 1 counts every patch.
            **kwargs: fields of transformers' processor that tell nothing that is not here.
        """
        self.patch_size = patch_size
        self.fusion_window = fusion_window
        self.image_token = getattr(tokenizer, "image_token", image_token)
        self.video_token = getattr(tokenizer, "video_token", video_token)
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template)
        ensure_pad_token(tokenizer)

    @property
    def tile_side(self) -> int:
        """Side in pixels of an image or frame, or of a tile, as the tower is shown it."""
        size = self.image_processor.crop_size or self.image_processor.size
        return size.get("height") or size.get("shortest_edge")

    @property
    def grid(self) -> int:
        """As `tile_side`, in patches."""
        return self.tile_side // self.patch_size

    def window(self, vision_tokens: int | None) -> int:
        """Side of the windows that leave so many tokens of a square; default `fusion_window`."""
        return self.fusion_window if vision_tokens is None else -(-self.grid // isqrt(vision_tokens))

    def process_videos(self, videos: Any) -> tuple[dict[str, Any], list[int]]:
        """As `FusedProcessing.process_videos`: `pixel_values_videos`, for each video [frames, 3, height, width].

        Raises:
            PromptError: the videos differ in their number of frames, which one batch cannot hold.
            VideoError: what is given are no frames.
        """
        single = isinstance(videos, Video) or (isinstance(videos, np.ndarray) and videos.ndim == 4)
        clips = [video if isinstance(video, Video) else Video(video) for video in ([videos] if single else videos)]
        frames = [len(clip.frames) for clip in clips]
        if len(set(frames)) > 1:
            raise PromptError(
                f"The videos of one batch need one number of frames, found {', '.join(map(str, frames))}; choose it "
                "for all, or ask one by one."
            )
        pixels = pixels_of_frames(self.image_processor, [clip.frames for clip in clips])
        return {"pixel_values_videos": list(pixels)}, frames


def pixels_of_frames(image_processor: Any, videos: Sequence[Sequence[Image.Image]]) -> Tensor:
    """Frames prepared by Pillow as images are, whole and by an image processor's own settings.

    Args:
        image_processor: of the images of the same model.
        videos: for each its frames, of all equally many.

    Returns:
        float32 [videos, frames, 3, height, width].
    """
    images = image_processor
    prepare = CLIPImageProcessorPil(
        size=images.size, crop_size=images.crop_size or images.size, do_center_crop=bool(images.do_center_crop),
        resample=images.resample, rescale_factor=images.rescale_factor,
        image_mean=images.image_mean, image_std=images.image_std,
    )  # fmt: skip
    return torch.stack([prepare(list(frames), return_tensors="pt")["pixel_values"] for frames in videos])
