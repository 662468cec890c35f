"""What vLLM's front end does with the images and videos of a request: how many tokens each takes, and its pixels.

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
from vllm.model_executor.models.llava import BaseLlavaMultiModalProcessor
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs, PromptReplacement, PromptUpdate

from llava_stf.errors import PromptError
from llava_stf.images import load_image
from llava_stf.images.frames import Video
from llava_stf.models.fusion.budget import num_image_tokens, num_video_tokens
from llava_stf.models.fusion.tiles import has_tiles, number_of_tiles, shows_several_whole, takes_videos
from llava_stf.vllm_plugin.info import OPTION, FusedInfo

# Fields of images, and of videos: what the model is told beside pixels.
SIZES, VIDEO_OPTION = "image_sizes", "vision_tokens_of_videos"
_BESIDE = "beside_others"  # among a request's options, set here and by no request


class FusedProcessor(BaseLlavaMultiModalProcessor[FusedInfo]):
    """Pixels and placeholders of a request's images, and of its videos, of which all frames are shown that it has.

    `apply` raises `PromptError` if markers and images, or videos, differ in number or a video has more frames than fit,
    `ImageError` and `VideoError` for what `load_image` and `Video` refuse, and `FusionError` for a token count that the
    model does not have. vLLM answers them with status 400.
    """

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> MultiModalInput:
        """As vLLM's, behind a check of the options and of one marker per image and video."""
        self.info.check_options(inputs.hf_processor_mm_kwargs)
        config = self.info.get_hf_config()
        counts = {kind: inputs.mm_data_items.get_count(kind, strict=False) for kind in self._places()}
        for kind, place in self._places().items():
            found = inputs.prompt.count(place)
            if found != counts[kind]:
                raise PromptError(
                    f"Expected one marker per {kind}, found {found} markers in the text and {counts[kind]} {kind}s."
                )
        if counts["image"] > 1 and shows_several_whole(config):
            inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, _BESIDE: True}
        return super().apply(inputs, timing_ctx)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """As vLLM's, at the budget that gives most."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        inputs.hf_processor_mm_kwargs = {OPTION: self.info.largest_budget()}
        return inputs

    def _places(self) -> dict[str, int]:
        """The ids of the markers by kind."""
        config = self.info.get_hf_config()
        return {"image": config.image_token_id, **({"video": config.video_token_id} if takes_videos(config) else {})}

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        made = BatchFeature()
        if "images" in hf_data:
            made.update(self._images(hf_data["images"], hf_kwargs))
        if "videos" in hf_data:
            made.update(self._videos(hf_data["videos"], hf_kwargs))
        return made

    def _images(self, sources: Sequence[Any], hf_kwargs: Mapping[str, object]) -> dict[str, Any]:
        config, processor = self.info.get_hf_config(), self.info.get_hf_processor()
        # An image of a few bytes may be thousands of pixels long: padded to a square it would fill the memory.
        images = [load_image(image) for image in sources]
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
        return {"pixel_values": pixels, SIZES: torch.tensor(sizes), OPTION: budgets}

    def _videos(self, sources: Sequence[Any], hf_kwargs: Mapping[str, object]) -> dict[str, Any]:
        model, budget = self.info.ctx.model_config, self.info.vision_tokens(hf_kwargs)
        pixels = []
        for frames in sources:
            tokens = num_video_tokens(self.info.get_hf_config(), [len(frames)], budget)[0]
            if tokens > model.max_model_len:  # before they are prepared, which takes memory
                raise PromptError(
                    f"A video of {len(frames)} frames has {tokens} tokens, and the model has positions for "
                    f"{model.max_model_len}: send fewer frames."
                )
            made, _ = self.info.get_hf_processor().process_videos(Video(frames, frames=len(frames)))
            pixels.append(made["pixel_values_videos"][0].to(model.dtype))
        return {"pixel_values_videos": pixels, VIDEO_OPTION: torch.full((len(pixels),), budget)}

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "pixel_values": MultiModalFieldConfig.batched("image"),
            "image_embeds": MultiModalFieldConfig.batched("image"),
            SIZES: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            OPTION: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "pixel_values_videos": MultiModalFieldConfig.batched("video"),
            VIDEO_OPTION: MultiModalFieldConfig.batched("video", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        config = self.info.get_hf_config()
        budget = self.info.vision_tokens(hf_processor_mm_kwargs)

        def of_image(index: int) -> int:
            images = mm_items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
            if isinstance(images, ImageEmbeddingItems):
                return images.get_feature_size(index)
            height, width = out_mm_kwargs["image"][index][SIZES].data.tolist()
            return num_image_tokens(config, [(height, width)], budget)[0]

        def of_video(index: int) -> int:
            frames = len(out_mm_kwargs["video"][index]["pixel_values_videos"].data)
            return num_video_tokens(config, [frames], budget)[0]

        tokens = {"image": of_image, "video": of_video}

        def replacement(kind: str, place: int) -> PromptReplacement:
            return PromptReplacement(kind, target=[place], replacement=lambda index: [place] * tokens[kind](index))

        return [replacement(kind, place) for kind, place in self._places().items()]
