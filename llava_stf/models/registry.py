"""Which LLaVA classes of transformers can be made to fuse tokens, and by which classes of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from llava_stf.errors import FusionError
from llava_stf.models.llava_next.configuration_llava_next_stf import LlavaNextStfConfig
from llava_stf.models.llava_next.modeling_llava_next_stf import LlavaNextStfForConditionalGeneration, LlavaNextStfModel
from llava_stf.models.llava_next.processing_llava_next_stf import LlavaNextStfProcessor
from llava_stf.models.llava_next_video.configuration_llava_next_video_stf import LlavaNextVideoStfConfig
from llava_stf.models.llava_next_video.modeling_llava_next_video_stf import (
    LlavaNextVideoStfForConditionalGeneration,
    LlavaNextVideoStfModel,
)
from llava_stf.models.llava_next_video.processing_llava_next_video_stf import LlavaNextVideoStfProcessor
from llava_stf.models.llava_onevision.configuration_llava_onevision_stf import LlavaOnevisionStfConfig
from llava_stf.models.llava_onevision.modeling_llava_onevision_stf import (
    LlavaOnevisionStfForConditionalGeneration,
    LlavaOnevisionStfModel,
)
from llava_stf.models.llava_onevision.processing_llava_onevision_stf import LlavaOnevisionStfProcessor
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE
from llava_stf.models.llava_stf.modeling_llava_stf import LlavaStfForConditionalGeneration, LlavaStfModel
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
from llava_stf.models.video_llava.configuration_video_llava_stf import VideoLlavaStfConfig
from llava_stf.models.video_llava.modeling_video_llava_stf import (
    VideoLlavaStfForConditionalGeneration,
    VideoLlavaStfModel,
)
from llava_stf.models.video_llava.processing_video_llava_stf import VideoLlavaStfProcessor
from llava_stf.models.vipllava.configuration_vipllava_stf import VipLlavaStfConfig
from llava_stf.models.vipllava.modeling_vipllava_stf import VipLlavaStfForConditionalGeneration, VipLlavaStfModel
from llava_stf.models.vipllava.processing_vipllava_stf import VipLlavaStfProcessor


@dataclass(frozen=True)
class Family:
    """What stands for one LLaVA class of transformers once it fuses tokens: a folder of `llava_stf.models`.

    Attributes:
        model: with the head.
        inner: without.
        config: of both.
        processor: counts fused windows; with windows of one patch also for the plain model.
        plain_config: that of transformers.
        plain_processor: that of transformers.
        chat_template: where a checkpoint has none; `None` if the family has been trained on several.
    """

    model: type[PreTrainedModel]
    inner: type[PreTrainedModel]
    config: Any
    processor: type[ProcessorMixin]
    plain_config: type[PreTrainedConfig]
    plain_processor: type[ProcessorMixin]
    chat_template: str | None = None


FAMILIES: dict[type[nn.Module], Family] = {
    LlavaForConditionalGeneration: Family(
        LlavaStfForConditionalGeneration, LlavaStfModel, LlavaStfConfig, LlavaStfProcessor, LlavaConfig, LlavaProcessor,
        CHAT_TEMPLATE,
    ),
    LlavaNextForConditionalGeneration: Family(
        LlavaNextStfForConditionalGeneration, LlavaNextStfModel, LlavaNextStfConfig, LlavaNextStfProcessor,
        LlavaNextConfig, LlavaNextProcessor,
    ),
    LlavaOnevisionForConditionalGeneration: Family(
        LlavaOnevisionStfForConditionalGeneration, LlavaOnevisionStfModel, LlavaOnevisionStfConfig,
        LlavaOnevisionStfProcessor, LlavaOnevisionConfig, LlavaOnevisionProcessor,
    ),
    LlavaNextVideoForConditionalGeneration: Family(
        LlavaNextVideoStfForConditionalGeneration, LlavaNextVideoStfModel, LlavaNextVideoStfConfig,
        LlavaNextVideoStfProcessor, LlavaNextVideoConfig, LlavaNextVideoProcessor,
    ),
    VideoLlavaForConditionalGeneration: Family(
        VideoLlavaStfForConditionalGeneration, VideoLlavaStfModel, VideoLlavaStfConfig, VideoLlavaStfProcessor,
        VideoLlavaConfig, VideoLlavaProcessor, CHAT_TEMPLATE,
    ),
    VipLlavaForConditionalGeneration: Family(
        VipLlavaStfForConditionalGeneration, VipLlavaStfModel, VipLlavaStfConfig, VipLlavaStfProcessor, VipLlavaConfig,
        LlavaProcessor,
    ),
}  # fmt: skip
# By model type, plain or fused.
CONFIGS: dict[str, Any] = {
    config.model_type: config for family in FAMILIES.values() for config in (family.plain_config, family.config)
}

# In the config of a plain LLaVA that was trained here at all its vision tokens: `load_model` leaves it as it is.
TRAINED_PLAIN = "trained_at_all_vision_tokens"


def is_plain(model: nn.Module) -> bool:
    """Whether a model is one of transformers' own, neither fused nor reduced nor wrapped."""
    return type(model) in FAMILIES


def is_plain_config(config: PreTrainedConfig) -> bool:
    """Whether a config is one of transformers' own, as `is_plain` says of models."""
    return type(config) in {family.plain_config for family in FAMILIES.values()}


def family_of(model: nn.Module) -> Family:
    """The classes for a plain model.

    Raises:
        FusionError: it is none that can be changed.
    """
    if not is_plain(model):
        *others, last = (stock.__name__ for stock in FAMILIES)
        known = f"{', '.join(others)} or {last}"
        raise FusionError(
            f"Expected a plain {known}, found {type(model).__name__}; load it with vision_tokens='all', change it "
            "before wrapping it (PEFT, compile), and a changed one only after remove_stf or remove_reduction."
        )
    return FAMILIES[type(model)]


def family_of_config(config: PreTrainedConfig) -> Family:
    """The classes for models with this config, plain or fused, which must be one of `CONFIGS`."""
    return next(family for family in FAMILIES.values() if isinstance(config, (family.plain_config, family.config)))
