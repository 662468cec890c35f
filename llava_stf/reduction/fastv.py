"""FastV: after a few layers of the LLM, drop the image tokens that the prompt's last token hardly attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import LlamaModel, LlavaConfig

from llava_stf.errors import FusionError
from llava_stf.reduction.attention import last_token_attention
from llava_stf.reduction.layer_tokens import Tokens, best
from llava_stf.reduction.layers import LayerDropping


@dataclass(frozen=True)
class FastV(LayerDropping):
    """Prunes in the LLM: the first `full_layers` layers see every patch, those above the budget.

    The full layers are the paper's K, 2 there. Patches are ranked by attention in the last full layer: by that of the
    prompt's last token, as in the authors' release, while the paper's text takes the mean over all tokens, which would
    need the whole attention map. Tokens keep the positions that they had in the whole prompt. Without a cache every new
    token makes a prompt of its own, and the choice is made anew.
    """

    full_layers: int = 2

    name = "fastv"
    title = "FastV"
    reference = "Chen et al., arXiv 2403.06764"
    needs = (
        "All patches in the first two layers and in the prompt, the attention of one token in one layer (attention "
        "stays fused), and a cache of two lengths."
    )

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse an LLM that has no layer to prune behind."""
        super().check(config, patches, vision_tokens)
        layers = config.text_config.num_hidden_layers
        if not 1 <= self.full_layers <= layers:
            raise FusionError(
                f"FastV's full_layers must be 1 to the number of LLM layers, {layers}; found {self.full_layers}."
            )

    def stages(self, num_layers: int, patches: int, vision_tokens: int) -> dict[int, int]:
        """One: M tokens behind the full layers."""
        return {self.full_layers: vision_tokens}

    def choose(self, llm: LlamaModel, layer: int, tokens: Tokens, count: int) -> tuple[Tensor, Tensor]:
        """The `count` patches of each image that the last token attends to most in the layer below."""
        assert tokens.below is not None
        attention = last_token_attention(llm.layers[layer - 1], tokens.below, tokens.rotary, tokens.valid)
        rows, columns = tokens.places()
        return tokens.left(best(attention[rows[:, None], columns], count)), tokens.hidden
