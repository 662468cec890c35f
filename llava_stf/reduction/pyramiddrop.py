"""PyramidDrop: the LLM in stages, and at the end of each the image tokens that the last token hardly attends to go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import LlamaModel, LlavaConfig

from llava_stf.errors import FusionError
from llava_stf.reduction.attention import last_token_attention
from llava_stf.reduction.layer_tokens import Tokens, best
from llava_stf.reduction.layers import LayerDropping


@dataclass(frozen=True)
class PyramidDrop(LayerDropping):
    """Prunes between the paper's S stages of equally many layers, each time to the same share of what is left.

    That share is the paper's lambda, here (M / N) ** (1 / (S - 1)), so that M patches are left in the last stage; its
    authors' setting, lambda 0.5 and S = 4, is M = 72 of 576: 576, 288, 144 and 72 tokens from layers 0, 8, 16 and 24
    on, a mean of 270. Patches are ranked by what the prompt's last token attends to in the layer that follows, and what
    is left moves up to consecutive positions, as in the authors' release (their scripts for LLaVA-1.5 name the layers
    8, 16 and 24 and the shares 0.5, 0.25 and 0.125).

    Ours: counts between N and M are rounded to the nearest integer, and stages of a depth that S does not divide begin
    at the layers i L // S. With S stages the mean over layers is at least N / S, 144 of 576 for S = 4; by which layers
    and shares tables reach a mean of 128 or 64 their authors do not say.

    Attributes:
        parts: S.
    """

    parts: int = 4

    name = "pyramiddrop"
    title = "PyramidDrop"
    reference = "Xing et al., arXiv 2410.17247"
    needs = (
        "All patches in the first stage and in the prompt, the attention of one token once a stage (attention stays "
        "fused), and a cache of one length a stage."
    )
    renumber = True

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse more stages than layers."""
        super().check(config, patches, vision_tokens)
        layers = config.text_config.num_hidden_layers
        if not 2 <= self.parts <= layers:
            raise FusionError(
                f"PyramidDrop's parts must be 2 to the number of LLM layers, {layers}; found {self.parts}."
            )

    def stages(self, num_layers: int, patches: int, vision_tokens: int) -> dict[int, int]:
        """From each stage's first layer on, the share of N that it is left: M in the last."""
        share = vision_tokens / patches
        return {
            step * num_layers // self.parts: round(patches * share ** (step / (self.parts - 1)))
            for step in range(1, self.parts)
        }

    def choose(self, llm: LlamaModel, layer: int, tokens: Tokens, count: int) -> tuple[Tensor, Tensor]:
        """The `count` tokens of each image that the last token attends to most in the layer that comes."""
        attention = last_token_attention(llm.layers[layer], tokens.hidden, tokens.rotary, tokens.valid)
        rows, columns = tokens.places()
        return tokens.left(best(attention[rows[:, None], columns], count)), tokens.hidden
