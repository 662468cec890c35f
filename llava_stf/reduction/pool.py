"""Average pooling: the mean of the projected patches in each window."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import LlavaConfig

from llava_stf.models.llava_stf.configuration_llava_stf import window_for
from llava_stf.reduction.method import Method
from llava_stf_kernels import pool_tokens

if TYPE_CHECKING:
    from llava_stf.reduction.model import ReducedLlavaModel


class Pool(Method):
    """The baseline of LLaVA-STF's paper: equal to `apply_pooling`. Budgets are those of whole windows."""

    name = "pool"
    title = "mean pooling"
    reference = "Tang and Shen, arXiv 2506.07138, the baseline of the introduction"
    needs = "Nothing: the projector runs on all patches, then their mean over each window is taken."

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        window_for(isqrt(patches), vision_tokens)

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        tokens = model.multi_modal_projector(model.patch_states(pixel_values))
        reduction = model.reduction
        return pool_tokens(tokens, window_for(isqrt(reduction.patches), reduction.vision_tokens))
