"""VisPruner: half of the patches by attention, the other half by taking duplicates out of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_stf.reduction.class_token import ClassTokenMethod
from llava_stf.reduction.model import ReducedLlavaModel
from llava_stf.reduction.tensors import gather_tokens

# Duplicates that are taken out before the rest is paired anew.
PER_ROUND = 8


def distinct_tokens(states: Tensor, rest: Tensor, count: int) -> Tensor:
    """What is left of `rest` once its duplicates are gone: int64 [B, count].

    Every second token is compared with those between; the most alike of the former go, up to eight at a time.

    Args:
        states: [B, N, C]; cosines in float32.
        rest: int64 [B, R], in the order in which tokens are paired.
        count: at most R.
    """
    unit, images = functional.normalize(states.float(), dim=-1), torch.arange(len(states), device=states.device)
    likeness = unit @ unit.transpose(1, 2)
    while rest.shape[1] > count:
        first, second = rest[:, ::2], rest[:, 1::2]
        gone = min(PER_ROUND, rest.shape[1] - count, first.shape[1])
        nearest = likeness[images[:, None, None], first[..., None], second[:, None]].amax(-1)
        stay = nearest.argsort(dim=-1, descending=True, stable=True)[:, gone:]
        rest = torch.cat([first.gather(1, stay), second], dim=1)
    return rest


@dataclass(frozen=True)
class VisPruner(ClassTokenMethod):
    """Keeps patches as they are, before the projector, in raster order.

    As in its authors' release: the M // 2 patches that the class token attends to most in the selected block, and of
    the others, paired in the order of attention, those that are least like another in rounds of eight. The share of
    important patches, r, is the authors' default of one half.

    Ours: odd numbers of patches are paired, too; cosines are float32.
    """

    name = "vispruner"
    title = "VisPruner"
    reference = "Zhang et al., arXiv 2412.01818"
    needs = "The attention of the class token in one tower block, and the likeness of half the rest in many rounds."

    def choose(self, states: Tensor, attention: Tensor, count: int) -> Tensor:
        """Raster indices of the `count` patches that are kept, ascending int64 [B, count].

        Args:
            states: the selected state of the patches, [B, N, C].
            attention: float32 [B, N].
            count: M.
        """
        order, important = attention.argsort(dim=-1, descending=True, stable=True), count // 2
        diverse = distinct_tokens(states, order[:, important:], count - important)
        return torch.cat([order[:, :important], diverse], dim=1).sort(-1).values

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """The chosen patches, projected: [B, M, H]."""
        state, attention, _ = self.measure(model, pixel_values)
        kept = self.choose(state[:, 1:], attention, model.reduction.vision_tokens)
        return model.multi_modal_projector(gather_tokens(state[:, 1:], kept))

    @torch.no_grad()
    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        """The chosen patches."""
        state, attention, _ = self.measure(model.model, pixel_values)
        return self.choose(state[:, 1:], attention, model.model.reduction.vision_tokens)
