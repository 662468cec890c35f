"""Average pooling: the mean of the projected patches in each window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import resolve_window
from llava_stf.models.fusion.pooling import PooledProjector
from llava_stf.reduction.fusion import FusingMethod, fused_config, fusing_change, pooling_fields, window_fields
from llava_stf.reduction.method import Change
from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod
from llava_stf.reduction.size_bias import SizeBias, check_size_bias
from llava_stf_kernels import pool_tokens


@dataclass(frozen=True)
class SizedPool(TrainingFreeMethod):
    """Mean pooling whose tokens weigh by the patches in them: what `Pool(attention_bias=True)` makes of a model."""

    attention_bias: bool = True

    name = "pool"
    title = "mean pooling"
    reference = "Tang and Shen, arXiv 2506.07138, the baseline of the introduction"
    needs = "An additive mask in the LLM's attention."

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse a language model with sliding windows."""
        super().check(config, patches, vision_tokens)
        check_size_bias(config, self.name)

    def hooks(self, model: LlavaForConditionalGeneration) -> list[RemovableHandle]:
        """As `TrainingFreeMethod.hooks`."""
        return SizeBias(model).hooks()

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """The mean of the projected patches of each window: [B, M, H]."""
        reduction = model.reduction
        window = resolve_window(model.config, reduction.vision_tokens)
        tokens = pool_tokens(model.multi_modal_projector(model.patch_states(pixel_values)), window)
        reduction.encoded.sizes = tokens.new_full(tokens.shape[:2], window**2, dtype=torch.float32)
        return tokens


@dataclass(frozen=True)
class Pool(FusingMethod):
    """The baseline of LLaVA-STF's paper. Budgets are those of whole windows; the model can be saved and trained.

    Attributes:
        kernels: see `apply_pooling`.
        pool_frames: see `apply_pooling`.
        attention_bias: whether the LLM attends to a token by the number of patches in it. Such a model has no form
            that can be saved, trained or exported; `apply_reduction` makes it, for images that are single squares.
    """

    kernels: Literal["auto", "triton", "torch"] = "auto"
    pool_frames: bool = True
    attention_bias: bool = False

    name = "pool"
    title = "mean pooling"
    reference = "Tang and Shen, arXiv 2506.07138, the baseline of the introduction"
    needs = "Nothing: the projector runs on all patches, then their mean over each window is taken."

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """As `FusingMethod.check`; with `attention_bias` also as `TrainingFreeMethod.check`."""
        super().check(config, patches, vision_tokens)
        if self.attention_bias:
            SizedPool().check(config, patches, vision_tokens)

    def plan(self, model: LlavaForConditionalGeneration, vision_tokens: int, seed: int) -> Change:
        """As `FusingMethod.plan`; with `attention_bias` it is a method without a projector of its own."""
        if self.attention_bias:
            return SizedPool().plan(model, vision_tokens, seed)
        return super().plan(model, vision_tokens, seed)

    def fuse(self, model: LlavaForConditionalGeneration, window: int | Sequence[int], seed: int) -> Change:
        """As `FusingMethod.fuse`, with a copy of the model's own projector."""
        if self.attention_bias:
            raise FusionError("Pooling with attention_bias has one budget and no weights: take apply_reduction.")
        config = fused_config(model, fusion="pool", **window_fields(window), **pooling_fields(model, self.pool_frames))
        projector = PooledProjector(config)
        projector.load_state_dict(model.model.multi_modal_projector.state_dict())
        return fusing_change(model, config, projector, self.kernels)
