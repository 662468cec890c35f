"""The processor of LLaVA-OneVision on fused tokens: counts come from sizes, and from who stands in a prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import LlavaOnevisionProcessor
from transformers.processing_utils import MultiModalData

from llava_stf.models.fusion.budget import ImageSizes
from llava_stf.models.fusion.tiles import WHOLE, most_tiles, tile_tokens
from llava_stf.models.fusion.video_processing import FusedVideoProcessing
from llava_stf.models.fusion.videos import onevision_tokens


class LlavaOnevisionStfProcessor(FusedVideoProcessing, LlavaOnevisionProcessor):
    """Prepares images in tiles, videos and prompts, see `FusedVideoProcessing`.

    An image that is alone in its prompt is cut into tiles; several of one prompt, given nested or not, are shown whole.

    Args beyond `FusedVideoProcessing`'s:
        vision_aspect_ratio: says how many tiles' tokens an image has at most.
        fusion_pool_frames: whether frames are pooled besides, as the model's config says.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        vision_aspect_ratio: str = "anyres_max_9",
        fusion_window: int = 2,
        fusion_pool_frames: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vision_aspect_ratio = vision_aspect_ratio
        super().__init__(
            image_processor,
            tokenizer,
            patch_size,
            chat_template,
            image_token,
            video_token,
            fusion_window,
            **kwargs,
        )
        self.fusion_pool_frames = fusion_pool_frames

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each image.

        Args:
            image_sizes: height and width of each in pixels, before it is resized, or `WHOLE` beside others.
            vision_tokens: what each tile takes; default by `fusion_window`.
        """
        side, pinpoints = self.tile_side, self.image_processor.image_grid_pinpoints
        most, window = most_tiles(self.vision_aspect_ratio), self.window(vision_tokens)
        sizes = [(int(height), int(width)) for height, width in image_sizes]
        return [tile_tokens(size, pinpoints, side, self.grid, window, most) for size in sizes]

    def num_video_tokens(self, frames: Sequence[int], vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each video, given by its number of frames."""
        window = self.window(vision_tokens)
        return [onevision_tokens(count, self.grid, window, self.fusion_pool_frames) for count in frames]

    def process_images(self, images: list[Any], prompts: list[int], options: dict[str, Any]) -> dict[str, Any]:
        """As `FusedProcessing.process_images`, the images nested by prompt."""
        left = iter(images)
        return dict(self.image_processor([[next(left) for _ in range(count)] for count in prompts], **options))

    def image_sizes_of(self, data: dict[str, Any]) -> ImageSizes:
        """Height and width of each image before it was resized, `WHOLE` beside others."""
        alone = [int(count) == 1 for count in data["batch_num_images"] for _ in range(int(count))]
        sizes = [(int(height), int(width)) for height, width in data["image_sizes"]]
        return [size if tiled else WHOLE for size, tiled in zip(sizes, alone, strict=True)]

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any
    ) -> MultiModalData:
        data: dict[str, Any] = {}
        if image_sizes is not None:
            tokens = self.num_image_tokens([(height, width) for height, width in image_sizes])
            data.update(num_image_tokens=tokens, num_image_patches=[1] * len(tokens))
        if video_sizes is not None:
            data.update(num_video_tokens=self.num_video_tokens([frames for frames, _, _ in video_sizes]))
        return MultiModalData(**data)
