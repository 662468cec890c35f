"""Configuration of Video-LLaVA with a projector that fuses tokens."""

from __future__ import annotations

from transformers import VideoLlavaConfig

from llava_stf.models.fusion.config import FusionConfig


class VideoLlavaStfConfig(FusionConfig, VideoLlavaConfig):
    """A `VideoLlavaConfig` whose projector fuses tokens; the fields that it adds are those of `FusionConfig`."""

    model_type = "video_llava_stf"

    vision_feature_layer: int | list[int] = -2
