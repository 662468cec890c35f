"""LLaVA-STF as a vLLM model: vLLM's LLaVA with several hidden states, the fusing projector and its token counts."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.utils import StageMissingLayer, WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.tokenizers import cached_tokenizer_from_config

from llava_stf.models.fusion.budget import resolve_window, token_budgets
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.vocabulary import suppressed_ids
from llava_stf.vllm_plugin.processing import (
    OPTION,
    LlavaStfDummyInputsBuilder,
    LlavaStfMultiModalProcessor,
    LlavaStfProcessingInfo,
)
from llava_stf.vllm_plugin.projector import build_shared_projector


@MULTIMODAL_REGISTRY.register_processor(
    LlavaStfMultiModalProcessor, info=LlavaStfProcessingInfo, dummy_inputs=LlavaStfDummyInputsBuilder
)
class LlavaStfForConditionalGeneration(LlavaForConditionalGeneration):
    """vLLM's LLaVA with a projector that fuses.

    The tower gives every fusion state, the projector fuses them, and no id that is no text is ever generated. The
    vision tower and the language model are vLLM's own, in parallel and quantized as there.

    Reads the names that every version of transformers writes: those of the tower with and without `vision_model`.
    """

    config: LlavaStfConfig
    multi_modal_projector: Any
    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_regex={re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."}
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # vLLM's own cache: the one that its front end tokenises with, `None` where it was told to take ids alone.
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self._suppressed = suppressed_ids(self.config, tokenizer)
        # Of a server that takes no images vLLM leaves out what they need.
        if not isinstance(self.multi_modal_projector, StageMissingLayer):
            self.multi_modal_projector = build_shared_projector(self.config)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Image tokens for the LLM, one [M, H] tensor per image; M is the request's `vision_tokens` (int64 [B])."""
        image_input = self._parse_and_validate_image_input(**kwargs)
        if image_input is None:
            return []
        if image_input["type"] == "image_embeds":
            return image_input["data"]
        states = self._tower_states(image_input["pixel_values"])
        counts = torch.as_tensor(kwargs[OPTION]).flatten().tolist()
        features: list[Tensor | None] = [None] * len(counts)
        for count in dict.fromkeys(counts):
            rows = [row for row, asked in enumerate(counts) if asked == count]
            chosen = states if len(rows) == len(counts) else [state[rows] for state in states]
            window = resolve_window(self.config, count)
            for row, tokens in zip(rows, self.multi_modal_projector(chosen, window), strict=True):
                features[row] = tokens
        return features

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
        config = self.config
        images = 1 if mm_kwargs is not None else -(-num_mm_embeds // min(token_budgets(config)))
        class_tokens = config.vision_config.model_type == "clip_vision_model"
        return images * (config.grid**2 + class_tokens), None
