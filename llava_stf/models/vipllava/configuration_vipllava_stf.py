"""Configuration of ViP-LLaVA on fused tokens: ViP-LLaVA's, with the windows."""

from __future__ import annotations

from typing import Any, Literal

from transformers import VipLlavaConfig

from llava_stf.errors import FusionError
from llava_stf.models.fusion.config import FusionConfig


class VipLlavaStfConfig(FusionConfig, VipLlavaConfig):
    """A `VipLlavaConfig` whose windows of patches are fused; the fields are those of `FusionConfig`.

    Its projector normalises the channels of five joined states together. STF reads these normed channels directly, and
    there is no MBTF; `fusion_block_hidden_size` has no effect.

    Raises:
        FusionError: `fusion` is neither `"stf"` nor `"pool"`.
    """

    model_type = "vipllava_stf"

    fusion: Literal["stf", "pool", "tokenpacker", "mqt"] = "stf"
    vision_feature_layer: int | list[int] | tuple[int, ...] = (-2, -5, -8, -11, 6)
    vision_feature_select_strategy: str = "default"
    multimodal_projector_bias: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.fusion not in ("stf", "pool"):
            raise FusionError(
                f"A ViP-LLaVA normalises five joined states before its projector, which takes fusion 'stf' or 'pool', "
                f"found '{self.fusion}'."
            )
        self.vision_feature_layer = _as_list(self.vision_feature_layer)
        super().__post_init__(**kwargs)


def _as_list(layers: int | list[int] | tuple[int, ...]) -> int | list[int]:
    return list(layers) if isinstance(layers, tuple) else layers
