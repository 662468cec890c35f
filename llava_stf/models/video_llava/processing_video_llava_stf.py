"""The processor of Video-LLaVA on fused tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import VideoLlavaProcessor
from transformers.processing_utils import MultiModalData

from llava_stf.models.fusion.budget import ImageSizes
from llava_stf.models.fusion.tiles import cells_of
from llava_stf.models.fusion.video_processing import FusedVideoProcessing
from llava_stf.models.fusion.videos import video_llava_tokens
from llava_stf.models.video_llava.modeling_video_llava_stf import PIXELS


class VideoLlavaStfProcessor(FusedVideoProcessing, VideoLlavaProcessor):
    """Prepares square images, videos and prompts, see `FusedVideoProcessing`."""

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each image, whatever its size; `vision_tokens` is by default that of `fusion_window`."""
        return [cells_of(self.grid, self.window(vision_tokens)) ** 2] * len(image_sizes)

    def num_video_tokens(self, frames: Sequence[int], vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each video, given by its number of frames."""
        return [video_llava_tokens(count, self.grid, self.window(vision_tokens)) for count in frames]

    def process_images(self, images: list[Any], prompts: list[int], options: dict[str, Any]) -> dict[str, Any]:
        """As `FusedProcessing.process_images`, under the name that the model takes."""
        if all(isinstance(image, Image.Image) for image in images):
            options = {**options, "input_data_format": "channels_last"}  # which cannot be told of a very low image
        (pixels,) = self.image_processor(images, **options).values()
        return {PIXELS: pixels}

    def image_sizes_of(self, data: dict[str, Any]) -> ImageSizes:
        """Height and width of each image as the tower is shown it."""
        return [(pixels.shape[-2], pixels.shape[-1]) for pixels in data[PIXELS]]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        tokens = self.num_image_tokens([(height, width) for height, width in image_sizes])
        return MultiModalData(num_image_tokens=tokens, num_image_patches=[1] * len(tokens))
