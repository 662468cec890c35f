"""M3, Matryoshka Multimodal Models: mean pooling at several nested budgets, trained together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import patch_grid
from llava_stf.models.fusion.tiles import refuse_tiles
from llava_stf.reduction.method import Change
from llava_stf.reduction.pool import Pool


@dataclass(frozen=True)
class M3(Pool):
    """Pooling as `pool` is, with the number of tokens that is asked for and every one nested in it.

    A window of pooled tokens is one token of the next, so that 576, 144, 36, 9 and 1 tokens of a 24x24 grid hold each
    other. Trained, it differs from `pool` in its LLM, which has seen all budgets: the paper's loss is the mean over
    them (`vision_tokens_schedule` all). What is saved is a model of kind `pool`.
    """

    name = "m3"
    title = "M3"
    reference = "Cai et al., arXiv 2405.17430"
    needs = "Training of the LLM at all nested budgets; before that it is mean pooling."

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse a class with tiles or videos, whose windows are nested otherwise."""
        refuse_tiles(config, self.title)
        if self.attention_bias:
            raise FusionError("M3 has no attention_bias; take Pool(attention_bias=True), which has one budget.")
        super().check(config, patches, vision_tokens)

    def fuse(self, model: LlavaForConditionalGeneration, window: int | Sequence[int], seed: int) -> Change:
        """As `FusingMethod.fuse`; one window brings those that are nested in it, several are taken as they are."""
        refuse_tiles(model.config, self.title)
        nested = window if isinstance(window, Sequence) else nested_windows(patch_grid(model.config), window)
        return super().fuse(model, nested, seed)


def nested_windows(grid: int, window: int) -> list[int]:
    """Sides of `window`, of its doublings as long as they divide the grid, and of the grid itself."""
    sides = [window]
    while grid % (2 * sides[-1]) == 0:
        sides.append(2 * sides[-1])
    return sides if sides[-1] == grid else [*sides, grid]
