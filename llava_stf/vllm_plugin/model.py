"""LLaVAs that fuse tokens as vLLM models: vLLM's own classes with several hidden states and the fusing projector."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration
from vllm.model_executor.models.utils import StageMissingLayer, WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.tokenizers import cached_tokenizer_from_config

from llava_stf.models.fusion.budget import ImageSizes, resolve_window, token_budgets
from llava_stf.models.fusion.tiled import TilePacking, whole_windows
from llava_stf.models.fusion.tiles import has_tiles
from llava_stf.models.fusion.videos import onevision_videos
from llava_stf.models.llava_stf.vocabulary import suppressed_ids
from llava_stf.vllm_plugin.info import OPTION, FusedDummyInputs, FusedInfo
from llava_stf.vllm_plugin.processing import SIZES, VIDEO_OPTION, FusedProcessor
from llava_stf.vllm_plugin.projector import build_shared_projector

# Files of every version of transformers are read: those of the tower with and without `vision_model`.
_TOWER = WeightsMapper(
    orig_to_new_regex={re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."}
)
_register = MULTIMODAL_REGISTRY.register_processor(FusedProcessor, info=FusedInfo, dummy_inputs=FusedDummyInputs)
_Base: Any = LlavaForConditionalGeneration if TYPE_CHECKING else object


class FusedModel(_Base):
    """Of every class here, before the one of vLLM among its bases.

    The tower gives every fusion state, the projector fuses them, and no id that is no text is ever generated. The
    vision tower and the language model are vLLM's own, in parallel and quantized as there.
    """

    config: Any
    multi_modal_projector: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # vLLM's own cache: the one that its front end tokenises with, `None` where it was told to take ids alone.
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self._suppressed = suppressed_ids(self.config, tokenizer)
        # Of a server that takes no images vLLM leaves out what they need.
        if not isinstance(self.multi_modal_projector, StageMissingLayer):
            self.multi_modal_projector = build_shared_projector(self.config)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Image tokens for the LLM, one [tokens, H] tensor per image, as many as its size and budget say.

        `pixel_values` are [B, 3, height, width], or of images in tiles B times [tiles, 3, height, width]; `image_sizes`
        int64 [B, 2]; and `vision_tokens`, int64 [B], the budgets that requests asked for.
        """
        image_input = self._parse_and_validate_image_input(**kwargs)
        if image_input is None:
            return []
        if image_input["type"] == "image_embeds":
            return image_input["data"]
        pixels = image_input["pixel_values"]
        sizes = [(height, width) for height, width in torch.as_tensor(kwargs[SIZES]).tolist()]

        def join(tokens: Tensor, rows: list[int]) -> list[Tensor]:
            return self.images_of(tokens, [sizes[row] for row in rows])

        squares = torch.cat(list(pixels)) if has_tiles(self.config) else pixels
        return self._fuse(squares, self.tiles_of(sizes), kwargs[OPTION], join)

    def _fuse(
        self, squares: Tensor, numbers: list[int], budgets: Any, join: Callable[[Tensor, list[int]], list[Tensor]]
    ) -> list[Tensor]:
        """The tokens [tokens, H] of each image or video.

        Args:
            squares: [all squares, 3, height, width], of the tower's size.
            numbers: how many of them each has.
            budgets: int64 [B], of each.
            join: makes of what the projector gives of some, [squares, M, H], the tokens of each; told which they are.
        """
        states = self._tower_states(squares)
        own = torch.arange(len(squares), device=squares.device).split(numbers)
        asked = torch.as_tensor(budgets).flatten().tolist()
        features: dict[int, Tensor] = {}
        for budget in dict.fromkeys(asked):
            rows = [row for row, one in enumerate(asked) if one == budget]
            chosen = torch.cat([own[row] for row in rows])
            some = states if len(rows) == len(asked) else [state[chosen] for state in states]
            window = resolve_window(self.config, budget)
            tokens = self.multi_modal_projector(whole_windows(some, window), window)
            features.update(zip(rows, join(tokens, rows), strict=True))
        return [features[row] for row in range(len(asked))]

    def tiles_of(self, sizes: ImageSizes) -> list[int]:
        """How many squares the tower is shown of each image."""
        return [1] * len(sizes)

    def images_of(self, features: Tensor, sizes: ImageSizes) -> list[Tensor]:
        """As `FusedImages.images_of`."""
        return list(features)

    def _tower_states(self, pixel_values: Tensor) -> list[Tensor]:
        """The fusion states of the patches, views [B, N, C]."""
        layers = self.config.fusion_states
        joined = self.vision_tower(pixel_values, select_layers=layers, feature_select_strategy="full")
        return list(joined[:, -(self.config.grid**2) :].chunk(len(layers), dim=-1))

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """As vLLM's, never choosing an id that is no text (see `suppressed_ids`)."""
        logits = super().compute_logits(hidden_states)
        if logits is not None:
            logits[..., self._suppressed] = -torch.inf
        return logits

    def get_mm_lora_token_counts(
        self, *, modality: str, mm_kwargs: MultiModalKwargsItem | None, num_mm_embeds: int
    ) -> tuple[int, int | None]:
        """Rows of the tower for adapters on it, and no count for the projector: its two modules see different numbers.

        `num_mm_embeds` is an image's tokens, or where `mm_kwargs` is `None` all that a batch has room for.
        """
        config, squares = self.config, 1
        if mm_kwargs is None:
            # An image has at least the tokens of one square.
            images = -(-num_mm_embeds // min(token_budgets(config)))
            squares = images * max(self.tiles_of(getattr(config, "image_grid_pinpoints", [(0, 0)])))
        elif has_tiles(config):
            squares = len(mm_kwargs["pixel_values"].data)
        class_tokens = config.vision_config.model_type == "clip_vision_model"
        return squares * (config.grid**2 + class_tokens), None


@_register
class LlavaStfForConditionalGeneration(FusedModel, LlavaForConditionalGeneration):
    """LLaVA-1.5 that fuses tokens."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | _TOWER


@_register
class LlavaNextStfForConditionalGeneration(TilePacking, FusedModel, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT that fuses tokens."""

    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | _TOWER


@_register
class LlavaOnevisionStfForConditionalGeneration(TilePacking, FusedModel, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision that fuses tokens, of images and of the frames of videos."""

    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | _TOWER

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """As `FusedModel.embed_multimodal`, or of videos: `pixel_values_videos`, B times [frames, 3, height, width]."""
        video_input = self._parse_and_validate_video_input(**kwargs)
        if video_input is None:
            return super().embed_multimodal(**kwargs)
        videos = list(video_input["pixel_values_videos"])
        frames = [len(video) for video in videos]

        def join(tokens: Tensor, rows: list[int]) -> list[Tensor]:
            each, pools = [frames[row] for row in rows], self.config.fusion_pool_frames
            return onevision_videos(tokens, each, self.image_newline, pools)

        return self._fuse(torch.cat(videos), frames, kwargs[VIDEO_OPTION], join)
