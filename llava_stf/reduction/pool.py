"""Average pooling: the mean of the projected patches in each window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import LlavaForConditionalGeneration

from llava_stf.models.fusion.pooling import PooledProjector
from llava_stf.reduction.fusion import FusingMethod, fused_config, fusing_change, pooling_fields, window_fields
from llava_stf.reduction.method import Change


@dataclass(frozen=True)
class Pool(FusingMethod):
    """The baseline of LLaVA-STF's paper. Budgets are those of whole windows; the model can be saved and trained."""

    kernels: Literal["auto", "triton", "torch"] = "auto"
    pool_frames: bool = True

    name = "pool"
    title = "mean pooling"
    reference = "Tang and Shen, arXiv 2506.07138, the baseline of the introduction"
    needs = "Nothing: the projector runs on all patches, then their mean over each window is taken."

    def fuse(self, model: LlavaForConditionalGeneration, window: int | Sequence[int], seed: int) -> Change:
        """As `FusingMethod.fuse`, with a copy of the model's own projector."""
        config = fused_config(model, fusion="pool", **window_fields(window), **pooling_fields(model, self.pool_frames))
        projector = PooledProjector(config)
        projector.load_state_dict(model.model.multi_modal_projector.state_dict())
        return fusing_change(model, config, projector, self.kernels)
