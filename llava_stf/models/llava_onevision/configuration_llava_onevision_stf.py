"""Configuration of LLaVA-OneVision with a projector that fuses tokens."""

from __future__ import annotations

from typing import Any

from transformers import LlavaOnevisionConfig

from llava_stf.models.fusion.config import VideoFusionConfig
from llava_stf.models.fusion.tiles import most_tiles


class LlavaOnevisionStfConfig(VideoFusionConfig, LlavaOnevisionConfig):
    """A `LlavaOnevisionConfig` whose projector fuses tokens; the fields that it adds are those of `VideoFusionConfig`.

    `image_seq_length` is of one tile. Its 27x27 patches are 14x14 windows of 2x2, the last of a row and column being of
    one patch less, or 9x9 windows of 3x3.
    """

    model_type = "llava_onevision_stf"

    vision_feature_layer: int | list[int] = -1
    vision_feature_select_strategy: str = "default"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        most_tiles(self.vision_aspect_ratio)
