"""The processor of LLaVA-NeXT-Video on fused tokens: counts come from the sizes of images and from frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import LlavaNextVideoProcessor
from transformers.processing_utils import MultiModalData

from llava_stf.models.fusion.budget import ImageSizes
from llava_stf.models.fusion.tiles import tile_tokens
from llava_stf.models.fusion.video_processing import FusedVideoProcessing
from llava_stf.models.fusion.videos import next_video_tokens


class LlavaNextVideoStfProcessor(FusedVideoProcessing, LlavaNextVideoProcessor):
    """Prepares images in tiles, videos and prompts, see `FusedVideoProcessing`.

    Args beyond `FusedVideoProcessing`'s:
        spatial_pool_stride: of the model's pooler of frames.
        fusion_pool_frames: whether frames go through it besides, as the model's config says.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        spatial_pool_stride: int = 2,
        fusion_window: int = 2,
        fusion_pool_frames: bool = True,
        **kwargs: Any,
    ) -> None:
        self.spatial_pool_stride = spatial_pool_stride
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
            image_sizes: height and width of each in pixels, before it is resized.
            vision_tokens: what each tile takes; default by `fusion_window`.
        """
        side, pinpoints = self.tile_side, self.image_processor.image_grid_pinpoints
        window = self.window(vision_tokens)
        sizes = [(int(height), int(width)) for height, width in image_sizes]
        return [tile_tokens(size, pinpoints, side, self.grid, window) for size in sizes]

    def num_video_tokens(self, frames: Sequence[int], vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each video, given by its number of frames."""
        stride = self.spatial_pool_stride if self.fusion_pool_frames else None
        return [next_video_tokens(count, self.grid, self.window(vision_tokens), stride) for count in frames]

    def image_sizes_of(self, data: dict[str, Any]) -> ImageSizes:
        """Height and width of each image before it was resized."""
        return [(int(height), int(width)) for height, width in data["image_sizes"]]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        tokens = self.num_image_tokens([(height, width) for height, width in image_sizes])
        return MultiModalData(num_image_tokens=tokens, num_image_patches=[1] * len(tokens))
