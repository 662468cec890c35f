"""DART: drop the image tokens that repeat what a few pivots say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel, LlavaConfig

from llava_stf.errors import FusionError
from llava_stf.reduction.attention import rotated_keys
from llava_stf.reduction.layer_tokens import Tokens
from llava_stf.reduction.layers import LayerDropping


def least_alike(states: Tensor, pivots: list[int], candidates: list[int], count: int) -> list[int]:
    """Which of the candidates to keep: for one pivot after the other, those least like it of the ones still left.

    Args:
        states: float32 [T, H].
        pivots: columns, in the order in which they choose.
        candidates: columns, ascending.
        count: in all, shared out evenly; where that does not go up, the first pivots take one more.
    """
    unit, left = functional.normalize(states, dim=-1), list(candidates)
    kept: list[int] = []
    for turn, pivot in enumerate(pivots):
        share = count // len(pivots) + (turn < count % len(pivots))
        order = (unit[left] @ unit[pivot]).argsort(stable=True)[:share].tolist()
        chosen = {left[place] for place in order}
        kept += chosen
        left = [column for column in left if column not in chosen]
    return kept


@dataclass(frozen=True)
class DART(LayerDropping):
    """Prunes once in the LLM, behind layer K, by likeness to pivots and not by attention.

    Pivots are the image tokens and the tokens of the text behind the image whose keys in layer K have the largest L1
    norm, 4 and 4, as in the scripts of the authors; every pivot keeps the tokens whose hidden states, normed as before
    the head, have the least cosine with its own. Kept are the image's pivots and those tokens: M = 4 + 8 t, so that the
    published 192, 128 and 64 (`max_num_trunction` of their scripts) are M = 196, 132 and 68 behind two layers that see
    all 576, means of 220, 160 and 100. Tokens keep the positions that they had in the whole prompt.

    The order in which pivots choose is that of a Python set of their columns, which is what the authors' loop goes
    through. Ours: at other M the first pivots keep one token more; columns count from the row's first token, so that
    padding changes nothing; a text of fewer tokens than pivots is all pivots; cosines are float32.

    Attributes:
        full_layers: K.
        image_pivots: of an image.
        text_pivots: of the text behind the last image.
    """

    full_layers: int = 2
    image_pivots: int = 4
    text_pivots: int = 4

    name = "dart"
    title = "DART"
    reference = "Wen et al., arXiv 2502.11494"
    needs = (
        "All patches in the first two layers and in the prompt, the keys of one layer twice, a loop over pivots, and a "
        "cache of two lengths; no attention."
    )

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse an LLM that has no layer to prune behind, and a budget below the pivots."""
        super().check(config, patches, vision_tokens)
        layers = config.text_config.num_hidden_layers
        if not 1 <= self.full_layers <= layers:
            raise FusionError(
                f"DART's full_layers must be 1 to the number of LLM layers, {layers}; found {self.full_layers}."
            )
        if self.image_pivots < 1 or vision_tokens < self.image_pivots:
            raise FusionError(
                f"DART keeps its pivots, at least one of each image: expected image_pivots of 1 to vision_tokens, "
                f"{vision_tokens}, found {self.image_pivots}."
            )

    def stages(self, num_layers: int, patches: int, vision_tokens: int) -> dict[int, int]:
        """One: M tokens behind layer K."""
        return {self.full_layers: vision_tokens}

    def choose(self, llm: LlamaModel, layer: int, tokens: Tokens, count: int) -> tuple[Tensor, Tensor]:
        """The pivots of each image, and what is least like them and the pivots of the text."""
        assert tokens.below is not None
        below = llm.layers[layer - 1]
        keys = rotated_keys(below, below.input_layernorm(tokens.below), tokens.rotary)
        norms = keys.transpose(1, 2).flatten(2).float().abs().sum(-1)  # [B, T]
        states, text = llm.norm(tokens.hidden).float(), tokens.behind()
        rows, columns = tokens.places()
        kept = torch.zeros_like(columns, dtype=torch.bool)
        for image, row in enumerate(rows.tolist()):
            first = int(tokens.valid[row].int().argmax())
            own = columns[image] - first
            words = text[row].nonzero()[:, 0] - first
            loudest = own[norms[row, own + first].topk(self.image_pivots).indices].tolist()
            spoken = words[norms[row, words + first].topk(min(self.text_pivots, len(words))).indices].tolist()
            candidates = [column for column in own.tolist() if column not in loudest]
            pivots = list(set(loudest + spoken))
            chosen = loudest + least_alike(states[row, first:], pivots, candidates, count - self.image_pivots)
            kept[image] = torch.isin(own, torch.tensor(chosen, device=own.device))
        return tokens.left(kept), tokens.hidden
