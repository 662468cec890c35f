"""Configuration of ViP-LLaVA on pooled tokens: ViP-LLaVA's, with the windows."""

from __future__ import annotations

from typing import Any, Literal

from transformers import VipLlavaConfig

from llava_stf.errors import FusionError
from llava_stf.models.fusion.config import FusionConfig


class VipLlavaStfConfig(FusionConfig, VipLlavaConfig):
    """A `VipLlavaConfig` whose projected patches are averaged over windows; the fields are those of `FusionConfig`.

    Its projector normalises the channels of five joined states together. MBTF would have to pass all of them on for an
    exact start and is a fifth as wide, so that pooling alone is offered.

    Raises:
        FusionError: `fusion` is not `"pool"`.
    """

    model_type = "vipllava_stf"

    fusion: Literal["stf", "pool", "tokenpacker", "mqt"] = "pool"
    vision_feature_layer: int | list[int] | tuple[int, ...] = (-2, -5, -8, -11, 6)
    vision_feature_select_strategy: str = "default"
    multimodal_projector_bias: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.fusion != "pool":
            raise FusionError(
                f"A ViP-LLaVA normalises five joined states before its projector and is pooled alone, found fusion "
                f"'{self.fusion}': take apply_pooling."
            )
        self.vision_feature_layer = _as_list(self.vision_feature_layer)
        super().__post_init__(**kwargs)


def _as_list(layers: int | list[int] | tuple[int, ...]) -> int | list[int]:
    return list(layers) if isinstance(layers, tuple) else layers
