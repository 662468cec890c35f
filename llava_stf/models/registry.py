"""Which LLaVA classes of transformers can be made to fuse tokens, and by which classes of ours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaModel, LlavaProcessor

from llava_stf.errors import FusionError
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.modeling_llava_stf import LlavaStfForConditionalGeneration, LlavaStfModel
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor


@dataclass(frozen=True)
class Family:
    """What stands for one LLaVA class of transformers once it fuses tokens: a folder of `llava_stf.models`."""

    model: type[LlavaForConditionalGeneration]
    inner: type[LlavaModel]
    config: type[LlavaStfConfig]
    processor: type[LlavaProcessor]


FAMILIES: dict[type[nn.Module], Family] = {
    LlavaForConditionalGeneration: Family(
        LlavaStfForConditionalGeneration, LlavaStfModel, LlavaStfConfig, LlavaStfProcessor
    ),
}


def is_plain(model: nn.Module) -> bool:
    """Whether a model is one of transformers' own, neither fused nor reduced nor wrapped."""
    return type(model) in FAMILIES


def family_of(model: nn.Module) -> Family:
    """The classes for a plain model.

    Raises:
        FusionError: it is none that can be changed.
    """
    if not is_plain(model):
        known = " or ".join(stock.__name__ for stock in FAMILIES)
        raise FusionError(
            f"Expected a plain {known}, found {type(model).__name__}; load it with vision_tokens='all', change it "
            "before wrapping it (PEFT, compile), and a changed one only after remove_stf or remove_reduction."
        )
    return FAMILIES[type(model)]
