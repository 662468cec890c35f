"""Configuration of LLaVA-NeXT-Video with a projector that fuses tokens."""

from __future__ import annotations

from transformers import LlavaNextVideoConfig

from llava_stf.errors import FusionError
from llava_stf.models.fusion.config import VideoFusionConfig


class LlavaNextVideoStfConfig(VideoFusionConfig, LlavaNextVideoConfig):
    """A `LlavaNextVideoConfig` whose projector fuses tokens; the fields that it adds are those of `VideoFusionConfig`.

    `image_seq_length` is of one tile.

    Raises:
        FusionError: as `VideoFusionConfig`, and where windows do not divide what the pooler leaves of a frame.
    """

    model_type = "llava_next_video_stf"

    vision_feature_layer: int | list[int] = -2

    def _check_window(self, window: int) -> None:
        super()._check_window(window)
        pooled = self.grid // self.spatial_pool_stride
        if self.fusion_pool_frames and pooled % window:
            raise FusionError(
                f"fusion_window {window} does not divide the {pooled}x{pooled} patches that LLaVA-NeXT-Video's pooler "
                f"leaves of a frame; take a divisor of {pooled}, or pool_frames=False, by which windows replace it."
            )
