"""DivPrune: keep the patches that differ most from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod
from llava_stf.reduction.tensors import gather_tokens


def most_diverse(x: Tensor, count: int, dtype: Literal["float32", "model"] = "float32") -> Tensor:
    """Raster indices of `count` tokens that lie far apart.

    The paper's max-min diversity problem, solved greedily: first the token whose nearest neighbour is farthest, then
    again and again the token whose nearest neighbour among those chosen is farthest. The distance is one minus the
    cosine.

    Args:
        x: [B, N, C].
        count: at most N.
        dtype: `"float32"`, each token at most once; or `"model"`, cosines in the dtype of `x` and nothing masked, as in
            the authors' code: in 16 bits a token's distance to itself is not always the least, and one may be chosen
            again.

    Returns:
        int64 [B, count], ascending.
    """
    exact = dtype == "float32"
    unit = functional.normalize(x.float() if exact else x, dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)  # [B, N, N]
    if exact or x.shape[1] == 1:
        nearest = distance.masked_fill(torch.eye(x.shape[1], dtype=torch.bool, device=x.device), torch.inf).amin(-1)
    else:
        nearest = distance.kthvalue(2, dim=1).values  # the least is taken to be that to itself
    if exact:
        distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # what is chosen is never chosen again
    return farthest_first(distance, nearest, count).sort(-1).values


def farthest_first(distance: Tensor, nearest: Tensor, count: int) -> Tensor:
    """`count` tokens in the order in which they are chosen, int64 [B, count].

    Args:
        distance: [B, N, N].
        nearest: [B, N], to the nearest other; it decides the first.
        count: at least 1.
    """
    rows = torch.arange(len(distance), device=distance.device)
    chosen, gap = [nearest.argmax(-1)], nearest.new_full(nearest.shape, torch.inf)  # to the nearest of the chosen
    for _ in range(count - 1):
        gap = torch.minimum(gap, distance[rows, chosen[-1]])
        chosen.append(gap.argmax(-1))
    return torch.stack(chosen, dim=1)


@dataclass(frozen=True)
class DivPrune(TrainingFreeMethod):
    """Chooses among the tokens as the LLM would get them: after the projector.

    In a float32 model the choice is that of the authors' code. In a LLaVA-NeXT it is made, as there, among all tokens
    of an image at once, when tiles are joined, padding cropped and newlines added; of T tokens M / N of T are left.

    Attributes:
        dtype: of the cosines in a model of 16 bits. `"float32"` (ours) is the exact choice and keeps as many tokens as
            it says; `"model"` is the authors': cosines rounded to the model's dtype, which chooses partly other tokens
            and may hold one twice.
    """

    dtype: Literal["float32", "model"] = "float32"

    tiles = "joined"  # tables on LLaVA-1.6

    name = "divprune"
    title = "DivPrune"
    reference = "Alvar et al., arXiv 2503.02175"
    needs = "The distances between all projected patches, and as many steps one after another as tokens are kept."

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """Projects all patches and keeps the most diverse: [B, M, H]."""
        tokens = model.multi_modal_projector(model.patch_states(pixel_values))
        return self.choose_joined(tokens, model.reduction.vision_tokens)

    def choose_joined(self, tokens: Tensor, count: int) -> Tensor:
        """The most diverse `count` tokens of [B, T, H]."""
        return gather_tokens(tokens, most_diverse(tokens, count, self.dtype))

    @torch.no_grad()
    def kept(self, model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
        """The most diverse patches, by their projected tokens."""
        tokens = model.model.multi_modal_projector(model.model.patch_states(pixel_values))
        return most_diverse(tokens, model.model.reduction.vision_tokens, self.dtype)
