"""Configuration of LLaVA-STF: LLaVA's, with the fields of a projector that fuses tokens."""

from __future__ import annotations

from transformers import LlavaConfig

from llava_stf.models.fusion.config import FusionConfig


class LlavaStfConfig(FusionConfig, LlavaConfig):
    """A `LlavaConfig` whose projector fuses tokens; the fields that it adds are those of `FusionConfig`."""

    model_type = "llava_stf"

    vision_feature_layer: int | list[int] = -2
