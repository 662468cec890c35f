"""What vLLM's front end does with the images of a request: how many tokens each takes, and its pixels.

A model for several token counts takes `mm_processor_kwargs={"vision_tokens": N}` with each request. The count is part
of what vLLM tells images apart by, so one image at two counts is cached twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.inputs import MultiModalInput
from vllm.model_executor.models.llava import (
    BaseLlavaMultiModalProcessor,
    BaseLlavaProcessingInfo,
    LlavaDummyInputsBuilder,
)
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs, PromptReplacement, PromptUpdate

from llava_stf.errors import FusionError, PromptError
from llava_stf.images import load_image
from llava_stf.models.fusion.budget import num_image_tokens, token_budgets, tokens_per_image
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor

OPTION = "vision_tokens"


class LlavaStfProcessingInfo(BaseLlavaProcessingInfo):
    """What vLLM asks about a model before there are images."""

    def get_hf_config(self) -> LlavaStfConfig:
        """As a `LlavaStfConfig`."""
        return self.ctx.get_hf_config(LlavaStfConfig)

    def get_hf_processor(self, **kwargs: object) -> LlavaStfProcessor:
        """As a `LlavaStfProcessor`, whatever the options."""
        return self.ctx.get_hf_processor(LlavaStfProcessor)

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """At the budget that gives most: a request may ask for any."""
        return self.most_image_tokens(image_height, image_width)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """As `most_image_tokens` of the tower's own image size."""
        side = self.get_hf_config().vision_config.image_size
        return {"image": self.most_image_tokens(side, side)}

    def most_image_tokens(self, height: int, width: int) -> int:
        """LLM tokens of an image of that size in pixels at the budget that gives most."""
        config = self.get_hf_config()
        return max(num_image_tokens(config, [(height, width)], budget)[0] for budget in token_budgets(config))

    def vision_tokens(self, options: Mapping[str, object]) -> int:
        """Tokens per image that a request's options ask for, or the server's, or by default the model's.

        Raises:
            FusionError: a count that the model does not have,, or any other option: the model takes images of one
                size, so nothing else about them can be chosen.
        """
        unknown = sorted(set(options) - {OPTION})
        if unknown:
            raise FusionError(f"mm_processor_kwargs may hold {OPTION} and nothing else, found {', '.join(unknown)}.")
        config = self.get_hf_config()
        count = self.ctx.get_merged_mm_kwargs(options).get(OPTION)
        if count is not None and type(count) is not int:
            raise FusionError(f"{OPTION} must be a number, found {count!r}.")
        return tokens_per_image(config, count)


class LlavaStfDummyInputsBuilder(LlavaDummyInputsBuilder[LlavaStfProcessingInfo]):
    """The images that vLLM measures memory with, at the largest count."""


class LlavaStfMultiModalProcessor(BaseLlavaMultiModalProcessor[LlavaStfProcessingInfo]):
    """Pixels and placeholders of a request's images.

    `apply` raises `PromptError` if markers and images differ in number, `ImageError` for an image that `load_image`
    refuses, and `FusionError` for a token count that the model does not have. vLLM answers them with status 400.
    """

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> MultiModalInput:
        """As vLLM's, behind a check of the options and of one marker per image."""
        self.info.vision_tokens(inputs.hf_processor_mm_kwargs)
        found = inputs.prompt.count(self.info.get_hf_config().image_token_id)
        images = inputs.mm_data_items.get_count("image", strict=False)
        if found != images:
            raise PromptError(f"Expected one marker per image, found {found} markers in the text and {images} images.")
        return super().apply(inputs, timing_ctx)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """As vLLM's, at the budget that gives most."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        inputs.hf_processor_mm_kwargs = {OPTION: max(token_budgets(self.info.get_hf_config()))}
        return inputs

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        # An image of a few bytes may be thousands of pixels long: padded to a square it would fill the memory.
        images = [load_image(image) for image in hf_data["images"]]
        pixels = self.info.get_hf_processor()(images=images, return_tensors="pt")["pixel_values"]
        counts = torch.full((len(images),), self.info.vision_tokens(hf_kwargs))
        return BatchFeature({"pixel_values": pixels.to(self.info.ctx.model_config.dtype), OPTION: counts})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "pixel_values": MultiModalFieldConfig.batched("image"),
            "image_embeds": MultiModalFieldConfig.batched("image"),
            OPTION: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        image_token_id = self.info.get_hf_config().image_token_id
        placeholders = [image_token_id] * self.info.vision_tokens(hf_processor_mm_kwargs)
        return [PromptReplacement(modality="image", target=[image_token_id], replacement=placeholders)]
