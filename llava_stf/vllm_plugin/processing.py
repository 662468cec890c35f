"""What vLLM's front end does with the images of a request: how many tokens each takes, and its pixels.

A model for several token counts takes `mm_processor_kwargs={"vision_tokens": N}` with each request. The count is part
of what vLLM tells images apart by, so one image at two counts is cached twice; and so it is if a model that shows
several images of one prompt whole, as LLaVA-OneVision, is shown it alone and beside others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.inputs import MultiModalInput
from vllm.model_executor.models.llava import (
    BaseLlavaMultiModalProcessor,
    BaseLlavaProcessingInfo,
    LlavaDummyInputsBuilder,
)
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems, ImageSize, MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs, PromptReplacement, PromptUpdate

from llava_stf.errors import FusionError, PromptError
from llava_stf.images import load_image
from llava_stf.models.fusion.budget import budget_per_image, largest_image, num_image_tokens, token_budgets
from llava_stf.models.fusion.tiles import has_tiles, number_of_tiles, shows_several_whole
from llava_stf.models.registry import family_of_config

OPTION, SIZES = "vision_tokens", "image_sizes"
_BESIDE = "beside_others"  # among a request's options, set here and by no request


class FusedInfo(BaseLlavaProcessingInfo):
    """What vLLM asks about a model before there are images."""

    def get_hf_config(self) -> Any:
        """That of a family that fuses tokens."""
        return self.ctx.get_hf_config()

    def get_hf_processor(self, **kwargs: object) -> Any:
        """That of the family, whatever the options."""
        return self.ctx.get_hf_processor(family_of_config(self.get_hf_config()).processor)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images alone, any number."""
        return {"image": None}

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """At the budget that gives most: a request may ask for any."""
        config = self.get_hf_config()
        size = image_height, image_width
        return max(num_image_tokens(config, [size], budget)[0] for budget in token_budgets(config))

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Tokens of the largest image at the budget that gives most."""
        size = self.get_image_size_with_most_features()
        return {"image": self.get_num_image_tokens(image_width=size.width, image_height=size.height)}

    def get_image_size_with_most_features(self) -> ImageSize:
        """The size of the largest image at the budget that gives most."""
        height, width = largest_image(self.get_hf_config(), self.largest_budget())
        return ImageSize(width=width, height=height)

    def largest_budget(self) -> int:
        """The budget at which an image may have most tokens."""
        config = self.get_hf_config()

        def most(budget: int) -> int:
            return num_image_tokens(config, [largest_image(config, budget)], budget)[0]

        return max(token_budgets(config), key=most)

    def check_options(self, options: Mapping[str, object]) -> None:
        """Check what a request asks for besides.

        Raises:
            FusionError: a count that the model does not have, or any other option: how images are read is the model's
                alone to say.
        """
        unknown = sorted(set(options) - {OPTION})
        if unknown:
            raise FusionError(f"mm_processor_kwargs may hold {OPTION} and nothing else, found {', '.join(unknown)}.")
        self.vision_tokens(options)

    def vision_tokens(self, options: Mapping[str, object]) -> int:
        """Tokens per image, or tile, that a request's options ask for, or the server's, or by default the model's.

        Raises:
            FusionError: the model does not have that count.
        """
        count = self.ctx.get_merged_mm_kwargs(options).get(OPTION)
        if count is not None and type(count) is not int:
            raise FusionError(f"{OPTION} must be a number, found {count!r}.")
        return budget_per_image(self.get_hf_config(), count)


class FusedDummyInputs(LlavaDummyInputsBuilder[FusedInfo]):
    """The images that vLLM measures memory with, at the largest count."""


class FusedImageProcessor(BaseLlavaMultiModalProcessor[FusedInfo]):
    """Pixels and placeholders of a request's images.

    `apply` raises `PromptError` if markers and images differ in number, `ImageError` for an image that `load_image`
    refuses, and `FusionError` for a token count that the model does not have. vLLM answers them with status 400.
    """

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> MultiModalInput:
        """As vLLM's, behind a check of the options and of one marker per image."""
        self.info.check_options(inputs.hf_processor_mm_kwargs)
        config = self.info.get_hf_config()
        found = inputs.prompt.count(config.image_token_id)
        images = inputs.mm_data_items.get_count("image", strict=False)
        if found != images:
            raise PromptError(f"Expected one marker per image, found {found} markers in the text and {images} images.")
        if images > 1 and shows_several_whole(config):
            inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, _BESIDE: True}
        return super().apply(inputs, timing_ctx)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """As vLLM's, at the budget that gives most."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        inputs.hf_processor_mm_kwargs = {OPTION: self.info.largest_budget()}
        return inputs

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        config, processor = self.info.get_hf_config(), self.info.get_hf_processor()
        # An image of a few bytes may be thousands of pixels long: padded to a square it would fill the memory.
        images = [load_image(image) for image in hf_data["images"]]
        # Those of the prompt that are cached are not here: a blank one stands for them.
        shown = [*images, Image.new("RGB", (1, 1))] if hf_kwargs.get(_BESIDE) else images
        prompts = [len(shown)] if hf_kwargs.get(_BESIDE) else [1] * len(images)
        made = processor.process_images(shown, prompts, {"return_tensors": "pt"})
        sizes = processor.image_sizes_of(made)[: len(images)]
        pixels = made["pixel_values"][: len(images)].to(self.info.ctx.model_config.dtype)
        if has_tiles(config):
            side, pinpoints = config.vision_config.image_size, config.image_grid_pinpoints
            counts = [number_of_tiles(size, pinpoints, side) for size in sizes]
            pixels = [tiles[:count] for tiles, count in zip(pixels, counts, strict=True)]
        budgets = torch.full((len(images),), self.info.vision_tokens(hf_kwargs))
        return BatchFeature({"pixel_values": pixels, SIZES: torch.tensor(sizes), OPTION: budgets})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "pixel_values": MultiModalFieldConfig.batched("image"),
            "image_embeds": MultiModalFieldConfig.batched("image"),
            SIZES: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            OPTION: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        config = self.info.get_hf_config()
        budget = self.info.vision_tokens(hf_processor_mm_kwargs)

        def places(index: int) -> list[int]:
            images = mm_items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
            if isinstance(images, ImageEmbeddingItems):
                count = images.get_feature_size(index)
            else:
                height, width = out_mm_kwargs["image"][index][SIZES].data.tolist()
                count = num_image_tokens(config, [(height, width)], budget)[0]
            return [config.image_token_id] * count

        return [PromptReplacement(modality="image", target=[config.image_token_id], replacement=places)]
