"""Configuration of LLaVA-NeXT with a projector that fuses tokens."""

from __future__ import annotations

from transformers import LlavaNextConfig

from llava_stf.models.fusion.config import FusionConfig


class LlavaNextStfConfig(FusionConfig, LlavaNextConfig):
    """A `LlavaNextConfig` whose projector fuses tokens; the fields that it adds are those of `FusionConfig`.

    `image_seq_length` is of one tile.
    """

    model_type = "llava_next_stf"

    vision_feature_layer: int | list[int] = -2
