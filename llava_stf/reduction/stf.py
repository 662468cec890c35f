"""Multi-Block and Spatial Token Fusion: the method of this package, learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import LlavaForConditionalGeneration

from llava_stf.models.fusion.projector import LlavaStfProjector
from llava_stf.models.fusion.warm_start import init_from_pooling
from llava_stf.models.llava_stf.adapter import load_adapter
from llava_stf.reduction.fusion import FusingMethod, fused_config, fusing_change, pooling_fields, window_fields
from llava_stf.reduction.method import Change


@dataclass(frozen=True)
class Stf(FusingMethod):
    """Joins hidden states of several depths, then each window of patches; `apply_stf` names its options."""

    fusion_layers: list[int] | None = None
    init: Literal["pool", "random"] | str | Path = "pool"
    kernels: Literal["auto", "triton", "torch"] = "auto"
    pool_frames: bool = True

    name = "stf"
    title = "STF"
    reference = "Tang and Shen, arXiv 2506.07138"
    needs = "Training: a projector of its own, which starts as the mean over each window."

    def fuse(self, model: LlavaForConditionalGeneration, window: int | Sequence[int], seed: int) -> Change:
        """As `FusingMethod.fuse`; an adapter file brings its own window.

        Raises:
            CheckpointError: the adapter file is damaged or does not fit.
        """
        adapter = load_adapter(self.init) if self.init not in ("pool", "random") else None
        fields = window_fields(window) | pooling_fields(model, self.pool_frames)
        fields |= {} if adapter is None else adapter.config_values(model.config)
        config = fused_config(model, fusion="stf", fusion_layers=self.fusion_layers, **fields)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projector = LlavaStfProjector(config)
        if adapter is not None:
            adapter.load_into(projector)
        elif self.init == "pool":
            init_from_pooling(projector, model.model.multi_modal_projector)
        return fusing_change(model, config, projector, self.kernels)
