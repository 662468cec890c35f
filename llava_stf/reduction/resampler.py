"""Trained projectors of other papers, which start at random: what TokenPacker and MQT share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.tiles import refuse_tiles
from llava_stf.reduction.fusion import FusingMethod, fused_config, fusing_change, window_fields
from llava_stf.reduction.method import Change


class ResamplerMethod(FusingMethod):
    """A method whose projector `fusion` of the config names as the method does. It is of use once it is trained."""

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse a class with tiles or videos, which the papers of these projectors do not define."""
        refuse_tiles(config, self.title)
        super().check(config, patches, vision_tokens)

    def fuse(self, model: LlavaForConditionalGeneration, window: int | Sequence[int], seed: int) -> Change:
        """As `FusingMethod.fuse`, with random weights."""
        refuse_tiles(model.config, self.title)
        config = fused_config(model, fusion=self.name, **window_fields(window))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projector = build_projector(config)
        return fusing_change(model, config, projector, "auto")
