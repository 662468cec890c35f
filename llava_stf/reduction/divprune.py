"""DivPrune: keep the patches that differ most from each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod
from llava_stf.reduction.tensors import gather_tokens


def most_diverse(x: Tensor, count: int) -> Tensor:
    """Raster indices of `count` tokens of x [B, N, C] that lie far apart: ascending int64 [B, count].

    The paper's max-min diversity problem, solved greedily: first the token whose nearest neighbour is farthest, then
    again and again the token whose nearest neighbour among those chosen is farthest. The distance is one minus the
    cosine, in float32.
    """
    unit = functional.normalize(x.float(), dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)  # [B, N, N]
    nearest = distance.masked_fill(torch.eye(x.shape[1], dtype=torch.bool, device=x.device), torch.inf).amin(-1)
    latest = nearest.argmax(-1, keepdim=True)
    chosen = [latest]
    gap = torch.full_like(nearest, torch.inf)  # [B, N], to the nearest of the chosen; theirs is -inf
    for _ in range(count - 1):
        gap = torch.minimum(gap, distance.gather(1, latest[..., None].expand(-1, -1, x.shape[1]))[:, 0])
        gap = gap.scatter(1, latest, -torch.inf)
        latest = gap.argmax(-1, keepdim=True)
        chosen.append(latest)
    return torch.cat(chosen, dim=1).sort(-1).values


class DivPrune(TrainingFreeMethod):
    """Chooses among the tokens as the LLM would get them: after the projector."""

    name = "divprune"
    title = "DivPrune"
    reference = "Alvar et al., arXiv 2503.02175"
    needs = "The distances between all projected patches, and as many steps one after another as tokens are kept."

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        tokens = model.multi_modal_projector(model.patch_states(pixel_values))
        return gather_tokens(tokens, most_diverse(tokens, model.reduction.vision_tokens))

    @torch.no_grad()
    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        tokens = model.model.multi_modal_projector(model.model.patch_states(pixel_values))
        return most_diverse(tokens, model.model.reduction.vision_tokens)
