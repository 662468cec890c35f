"""HoloV: every crop of the image gets its share of the budget, and in each crop the class token chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf.errors import FusionError
from llava_stf.reduction.class_token import ClassTokenMethod
from llava_stf.reduction.model import ReducedLlavaModel
from llava_stf.reduction.tensors import gather_tokens

# Weight of the variance of likeness beside attention, and what keeps quotients finite, as in the authors' release.
ALPHA, EPSILON = 0.09, 1e-6


def crop_scores(tokens: Tensor, attention: Tensor, crops: int) -> Tensor:
    """How much each crop has to say: mean attention and mean variance of likeness, brought to the scale of attention.

    Args:
        tokens: [B, N, H]; cosines in float32.
        attention: float32 [B, N].
        crops: contiguous runs of patches in raster order; where N does not go up, the first have one patch more.

    Returns:
        float32 [B, crops].
    """
    scores = []
    for x, heed in zip(tokens.float().tensor_split(crops, 1), (1e3 * attention).tensor_split(crops, 1), strict=True):
        others = x.shape[1] - 1
        if others < 1:
            scores.append(heed.mean(-1))
            continue
        unit = x / (x.norm(dim=-1, keepdim=True) + EPSILON)
        likeness = unit @ unit.transpose(1, 2) * (1 - torch.eye(x.shape[1], device=x.device))
        mean = likeness.sum(-1) / others
        variance = (likeness - mean[..., None]).square().sum(-1) / others  # of its own 0, too
        scale = heed.mean(-1, keepdim=True) / (variance.mean(-1, keepdim=True) + EPSILON)
        scores.append((heed + ALPHA * scale * variance).mean(-1))
    return torch.stack(scores, dim=1)


def shares(scores: Tensor, sizes: list[int], count: int) -> Tensor:
    """Tokens that each crop keeps, int64 [B, crops]: in proportion to the scores, what rounding leaves to the highest.

    What a crop has no patches for goes to the next highest, one each and again, until `count` are given.
    """
    room = torch.tensor(sizes, device=scores.device).expand(len(scores), -1)
    weights = scores / (scores.sum(-1, keepdim=True) + EPSILON)
    given = torch.minimum((weights * count).floor().long(), room)
    ranks = weights.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    while int((count - given.sum(-1)).max()) > 0:
        missing, open_ = (count - given.sum(-1))[:, None], given < room
        turn = torch.where(open_, ranks, len(sizes)).argsort(dim=-1, stable=True).argsort(-1)
        given = given + (open_ & (turn < missing))
    return given


@dataclass(frozen=True)
class HoloV(ClassTokenMethod):
    """Chooses among the projected tokens, crop by crop, and keeps them as they are.

    As in its authors' release for LLaVA-1.5: 16 crops, which are runs of 36 patches in raster order; a crop's score is
    the mean over its patches of the class token's attention in the selected block, times 1000, plus 0.09 times the
    variance of a patch's likeness to the others of its crop, scaled to the same mean; crops share M in proportion, and
    in each those that the class token attends to most are kept, in that order (a whole crop in its own).

    Ours: where a share exceeds its crop, the rest goes to the other crops (the release fills up with zero vectors); a
    grid that 16 does not divide has larger crops first; scores are float32.

    Attributes:
        crops: into which the patches are divided.
    """

    crops: int = 16

    name = "holov"
    title = "HoloV"
    reference = "Zou et al., arXiv 2510.02912"
    needs = "The attention of the class token in one tower block, all patches projected, and their likeness in crops."

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse more crops than patches."""
        super().check(config, patches, vision_tokens)
        if not 1 <= self.crops <= patches:
            raise FusionError(f"HoloV's crops must be 1 to the image's {patches} patches; found {self.crops}.")

    def choose(self, tokens: Tensor, attention: Tensor, count: int) -> Tensor:
        """Raster indices of the `count` patches that are kept, int64 [B, count], crop by crop.

        Args:
            tokens: projected patches, [B, N, H].
            attention: float32 [B, N].
            count: M.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device).tensor_split(self.crops)
        sizes = [len(crop) for crop in places]
        given = shares(crop_scores(tokens, attention, self.crops), sizes, count)
        order, kept = [], []
        for crop, heed in enumerate(attention.tensor_split(self.crops, 1)):
            ranked = heed.argsort(dim=-1, descending=True, stable=True) + places[crop][0]
            order.append(torch.where(given[:, crop, None] < sizes[crop], ranked, places[crop]))
            kept.append(torch.arange(sizes[crop], device=tokens.device) < given[:, crop, None])
        return torch.cat(order, dim=1)[torch.cat(kept, dim=1)].view(len(tokens), count)

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """The chosen of the projected patches: [B, M, H]."""
        state, attention, _ = self.measure(model, pixel_values)
        tokens = model.multi_modal_projector(state[:, 1:])
        return gather_tokens(tokens, self.choose(tokens, attention, model.reduction.vision_tokens))

    @torch.no_grad()
    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        """The chosen patches, in raster order."""
        state, attention, _ = self.measure(model.model, pixel_values)
        tokens = model.model.multi_modal_projector(state[:, 1:])
        return self.choose(tokens, attention, model.model.reduction.vision_tokens).sort(-1).values
