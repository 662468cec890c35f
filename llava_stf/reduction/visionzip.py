"""VisionZip: keep the patches that the class token attends to, and merge the rest by likeness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_stf.reduction.class_token import ClassTokenMethod
from llava_stf.reduction.model import ReducedLlavaModel
from llava_stf.reduction.tensors import gather_tokens, marked

# The authors' splits for LLaVA-1.5 are 162 + 30, 108 + 20 and 54 + 10 (the class token is one of the first number). At
# other budgets their scripts leave both numbers to the user; the same share is this project's choice.
CONTEXTUAL_SHARE = 10 / 64


def contextual_count(count: int) -> int:
    """How many of `count` tokens are merged ones; the others are dominant."""
    return round(count * CONTEXTUAL_SHARE)


def dominant_tokens(attention: Tensor, count: int) -> Tensor:
    """Raster indices of the patches most attended to; attention [B, N] -> ascending int64 [B, count]."""
    return attention.topk(count, dim=-1).indices.sort(-1).values


def contextual_tokens(
    x: Tensor, keys: Tensor, rest: Tensor, places: Tensor, kind: Literal["added", "mean"]
) -> tuple[Tensor, Tensor]:
    """The paper's "contextual tokens merging": each patch of the rest goes to the target with the most similar key.

    Args:
        x: [B, N, C], patches; summed in float32.
        keys: [B, N, D]; cosines in float32.
        rest: int64 [B, R], the patches that are not dominant, ascending.
        places: int64 [c], which of the rest are targets.
        kind: `"added"` is a target plus the mean of what went to it, `"mean"` the mean of all of them.

    Returns:
        Contextual tokens [B, c, C] in the dtype of `x`, and the patches that were targets, int64 [B, c].
    """
    targets = rest[:, places]
    unit = functional.normalize(keys.float(), dim=-1)
    likeness = gather_tokens(unit, rest) @ gather_tokens(unit, targets).transpose(1, 2)
    assigned = functional.one_hot(likeness.argmax(-1), len(places)).to(torch.float32)  # [B, R, c]
    assigned = assigned.index_fill(1, places, 0.0)
    counts = assigned.sum(1)[..., None]
    sums = assigned.transpose(1, 2) @ gather_tokens(x, rest).float()
    own = gather_tokens(x, targets).float()
    merged = own + sums / counts.clamp(min=1) if kind == "added" else (own + sums) / (1 + counts)
    return merged.to(x.dtype), targets


@dataclass(frozen=True)
class VisionZip(ClassTokenMethod):
    """The authors' VisionZip: class token, dominant patches in raster order, contextual tokens, in that order.

    It works on the tower's state, so that the projector runs on what is left. In float32 its states are those of the
    authors' code; in 16 bits attention, cosines and means are taken in float32, where theirs are in the model's dtype,
    so that a choice between near ties may differ. With all four options changed it is a variant that keeps what the
    paper's text describes in a regular layout: patches alone, each contextual token a true mean, in raster order.

    Attributes:
        class_token: keep it, in place of the last dominant patch.
        contextual: `"added"`, a target plus the mean of the patches that went to it, a longer vector than the tower's
            own; or `"mean"`, the mean over the target and those patches.
        targets: `"stride"`, the first c of the patches that are not dominant, max(1, R // c) apart, R of them for c
            targets; or `"spread"` evenly over all of them.
        order: `"authors"`, contextual tokens behind all others; or `"raster"`, each where its target was.
    """

    class_token: bool = True
    contextual: Literal["added", "mean"] = "added"
    targets: Literal["stride", "spread"] = "stride"
    order: Literal["authors", "raster"] = "authors"

    tiles = "each"  # tables on LLaVA-NeXT; so the authors answer at JIA-Lab-research/VisionZip#17

    name = "visionzip"
    title = "VisionZip"
    reference = "Yang et al., arXiv 2412.04467"
    needs = "The attention of the class token in one tower block: its keys are computed twice, attention stays fused."

    def zip_tokens(self, state: Tensor, attention: Tensor, keys: Tensor, count: int) -> Tensor:
        """`count` tokens of an image, M - c of them as they are and c = `contextual_count(M)` merged.

        Args:
            state: [B, 1 + N, C], the class token first.
            attention: float32 [B, N].
            keys: [B, N, D].
            count: M.

        Returns:
            [B, M, C].
        """
        patches = attention.shape[1]
        x, contextual = state[:, 1:], contextual_count(count)
        dominant = self._dominant(attention, count)
        tokens, order = gather_tokens(x, dominant), dominant
        if contextual:
            other = torch.ones_like(attention, dtype=torch.bool).scatter(1, dominant, False)
            rest = marked(other, patches - dominant.shape[1])
            places = torch.arange(contextual, device=x.device)
            if self.targets == "stride":
                places = places * max(1, rest.shape[1] // contextual)
            else:
                places = places * rest.shape[1] // contextual
            merged, targets = contextual_tokens(x, keys, rest, places, self.contextual)
            tokens, order = torch.cat([tokens, merged], dim=1), torch.cat([dominant, targets], dim=1)
        if self.order == "raster":
            tokens = gather_tokens(tokens, order.argsort(-1))
        return torch.cat([state[:, :1], tokens], dim=1) if self.class_token else tokens

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """Dominant and contextual tokens, projected: [B, M, H]."""
        state, attention, keys = self.measure(model, pixel_values)
        return model.multi_modal_projector(self.zip_tokens(state, attention, keys, model.reduction.vision_tokens))

    @torch.no_grad()
    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        """The dominant patches alone: `vision_tokens` less `contextual_count`, and less the class token."""
        _, attention, _ = self.measure(model.model, pixel_values)
        return self._dominant(attention, model.model.reduction.vision_tokens)

    def _dominant(self, attention: Tensor, count: int) -> Tensor:
        return dominant_tokens(attention, count - contextual_count(count) - self.class_token)
