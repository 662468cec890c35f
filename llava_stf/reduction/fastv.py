"""FastV: after a few layers of the LLM, drop the image tokens that the prompt's last token hardly attends to.

Shapes: B rows, T prompt tokens, U tokens that are left of the longest row, S all tokens so far, I images of N patches.

Layers above hold fewer keys and values than layers below, so the cache has two lengths, and each has its own mask.
Tokens keep the positions that they had in the whole prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import Cache, LlavaConfig, LlavaForConditionalGeneration
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from llava_stf.errors import FusionError
from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod
from llava_stf.reduction.tensors import gather_tokens

# Under this name the state of one forward pass reaches the LLM's layers.
STATE = "fastv_pass"


def last_token_attention(
    layer: LlamaDecoderLayer, hidden: Tensor, rotary: tuple[Tensor, Tensor], attention_mask: Tensor
) -> Tensor:
    """What the last token of each row attends to in one LLaMA layer, mean over the heads: float32 [B, T].

    One query against all keys beside the layer's own attention, which stays fused. Padding gets nothing.

    Args:
        layer: the layer.
        hidden: its input, [B, T, H].
        rotary: cosine and sine of the positions, each [1 or B, T, head_dim].
        attention_mask: [B, T], zero for padding on either side.
    """
    attention, valid = layer.self_attn, attention_mask.bool()
    rows, last = torch.arange(len(hidden), device=hidden.device), valid.cumsum(-1).argmax(-1)
    normed = layer.input_layernorm(hidden)
    query = attention.q_proj(normed[rows, last][:, None]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    keys = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    cos, sin = (part.expand(len(hidden), -1, -1) for part in rotary)
    query, _ = apply_rotary_pos_emb(query, query, cos[rows, last][:, None], sin[rows, last][:, None])
    keys, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
    keys = keys.repeat_interleave(attention.num_key_value_groups, dim=1)
    scores = (query @ keys.transpose(2, 3))[:, :, 0] * attention.scaling  # [B, heads, T]
    return scores.float().masked_fill(~valid[:, None], -torch.inf).softmax(-1).mean(1)


def tokens_left(
    attention: Tensor, image_token_mask: Tensor, attention_mask: Tensor, patches: int, count: int
) -> Tensor:
    """Which tokens of the prompt stay: all text, and the `count` most attended to of each image. bool [B, T].

    Args:
        attention: float32 [B, T].
        image_token_mask: bool [B, T], the placeholders, `patches` for each image; rows may hold different numbers.
        attention_mask: [B, T], zero for padding.
        patches: placeholders of each image.
        count: patches of each image that stay.
    """
    rows, columns = image_token_mask.nonzero(as_tuple=True)
    best = attention[rows, columns].view(-1, patches).topk(count, dim=-1).indices
    chosen = torch.zeros(len(best), patches, dtype=torch.bool, device=image_token_mask.device).scatter(1, best, True)
    left = attention_mask.bool() & ~image_token_mask
    left[rows, columns] = chosen.flatten()
    return left


def find_cache(arguments: dict[str, Any]) -> Cache | None:
    """The key-value cache among keyword arguments, known by its type: its name differs between transformers versions.

    Under a name that an override declares and transformers no longer uses, the cache would be passed by in silence.
    """
    return next((value for value in arguments.values() if isinstance(value, Cache)), None)


@dataclass
class _Pass:
    """What the layers of one forward pass share: made by the model, read and filled by the layers' hooks."""

    attention_mask: Tensor  # [B, S]
    image_token_mask: Tensor | None  # bool [B, T] in the pass that reads a prompt with images
    patches: int
    vision_tokens: int
    upper_mask: Tensor | None  # [B, tokens that the layers above have seen, this pass included]
    order: Tensor | None = None  # int64 [B, U], tokens of this pass for the layers above, padding first
    causal_mask: Any = None  # for the layers above
    moved: dict[str, Any] | None = None  # positions and rotary embeddings of the tokens in `order`

    def choose(self, layer: LlamaDecoderLayer, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> None:
        """Decide, at the input of the last layer that sees everything, what the layers above get."""
        assert self.image_token_mask is not None
        attention = last_token_attention(layer, hidden, rotary, self.attention_mask)
        left = tokens_left(attention, self.image_token_mask, self.attention_mask, self.patches, self.vision_tokens)
        # A stable sort puts what is dropped in front: shorter rows are padded on the left, the rest stays in order.
        longest = int(left.sum(-1).max())
        self.order = left.to(torch.uint8).argsort(dim=-1, stable=True)[:, left.shape[1] - longest :]
        self.upper_mask = left.gather(1, self.order).to(self.attention_mask.dtype)

    def shorten(self, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """The tokens in `order` of hidden [B, T, H], at the first layer that does not see everything."""
        assert self.order is not None
        rows = len(hidden)
        rotary = tuple(gather_tokens(part.expand(rows, -1, -1), self.order) for part in kwargs["position_embeddings"])
        positions = kwargs["position_ids"].expand(rows, -1).gather(1, self.order)
        self.moved = {"position_embeddings": rotary, "position_ids": positions}
        return gather_tokens(hidden, self.order)


class FastVModel(ReducedLlavaModel):
    """`LlavaModel` that tells the LLM's layers where the image is."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `LlavaModel.forward`. In the pass that reads a prompt with images, hidden states come back shorter.

        Raises:
            FusionError: FastV cannot prune: without `input_ids`, which say where the images are; images behind a cache
                that holds tokens already, into a static cache, or with a mask that is not [B, S]; and in a pass that
                goes on from tokens of which no cache is given.
        """
        if input_ids is None:
            raise FusionError(
                "FastV prunes by the place of the image in input_ids; found none, as compiled generation gives its "
                "prompts: load the model with compile=False."
            )
        cache = find_cache(kwargs)
        seen = 0 if cache is None else cache.get_seq_length()
        if cache is None and attention_mask is not None and attention_mask.shape[-1] != input_ids.shape[1]:
            raise FusionError(
                f"FastV goes on from the cache of its prompt: the mask covers {attention_mask.shape[-1]} tokens, "
                f"input_ids are {input_ids.shape[1]}, and no key-value cache was found among the arguments."
            )
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), seen + input_ids.shape[1])
        image_token_mask = None
        if pixel_values is not None or kwargs.get("mm_encoder_outputs"):
            static = cache is not None and cache.is_compileable
            if seen or static or attention_mask.dim() != 2:
                raise FusionError(
                    "FastV prunes a whole prompt with its images at once: expected an empty dynamic cache and a mask "
                    "[B, T]; a static cache and images in a later pass do not work."
                )
            image_token_mask = input_ids == self.config.image_token_id
        upper_mask = attention_mask
        if seen and vars(cache).get(STATE) is not None:
            prompt_mask, prompt = vars(cache)[STATE]
            upper_mask = torch.cat([prompt_mask, attention_mask[:, prompt:]], dim=1)
        state = _Pass(
            attention_mask, image_token_mask, self.reduction.patches, self.reduction.vision_tokens, upper_mask
        )
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            **kwargs,
            **{STATE: state},
        )


def _before_layer(
    config: Any, full_layers: int, index: int, layer: LlamaDecoderLayer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hook before layer `index`: choose in the last of the `full_layers`, shorten after it."""
    state: _Pass | None = kwargs.pop(STATE, None)
    if state is None:
        raise FusionError("FastV prunes in the whole LLaVA; its language model cannot be called or compiled alone.")
    hidden = args[0]
    if index == full_layers - 1 and state.image_token_mask is not None:
        state.choose(layer, hidden, kwargs["position_embeddings"])
    if index < full_layers:
        return args, kwargs
    cache = find_cache(kwargs)
    if index == full_layers:
        if state.order is not None:
            hidden = state.shorten(hidden, kwargs)
            if cache is not None:
                setattr(cache, STATE, (state.upper_mask, state.attention_mask.shape[1]))
        state.causal_mask = create_causal_mask(config, hidden, state.upper_mask, cache, layer_idx=index)
    return (hidden, *args[1:]), kwargs | {"attention_mask": state.causal_mask} | (state.moved or {})


@dataclass(frozen=True)
class FastV(TrainingFreeMethod):
    """Prunes in the LLM: the first `full_layers` layers see every patch, those above the budget.

    The full layers are the paper's K, 2 there. Patches are ranked by attention in the last full layer: by that of the
    prompt's last token, as in the authors' release, while the paper's text takes the mean over all tokens, which would
    need the whole attention map. Without a cache every new token makes a prompt of its own, and the choice is made
    anew.
    """

    full_layers: int = 2

    name = "fastv"
    title = "FastV"
    reference = "Chen et al., arXiv 2403.06764"
    reads_prompt = True
    needs = (
        "All patches in the first two layers and in the prompt, the attention of one token in one layer (attention "
        "stays fused), and a cache of two lengths."
    )

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse an LLM that is no LLaMA, or that has no layer to prune behind."""
        super().check(config, patches, vision_tokens)
        text = config.text_config
        if text.model_type != "llama":
            raise FusionError(f"FastV prunes in the layers of LLaMA; found an LLM of type '{text.model_type}'.")
        if not 1 <= self.full_layers <= text.num_hidden_layers:
            raise FusionError(
                f"FastV's full_layers must be 1 to the number of LLM layers, {text.num_hidden_layers}; found "
                f"{self.full_layers}."
            )

    def prompt_tokens(self, patches: int, vision_tokens: int) -> int:
        """All patches: they are pruned inside the LLM."""
        return patches

    def vision_tokens_per_layer(self, num_layers: int, patches: int, vision_tokens: int) -> list[int]:
        """All patches in the first `full_layers` layers, M in those behind."""
        full = min(self.full_layers, num_layers)
        return [patches] * full + [vision_tokens] * (num_layers - full)

    def model_class(self) -> type[ReducedLlavaModel]:
        """A model whose LLM prunes."""
        return FastVModel

    def hooks(self, model: LlavaForConditionalGeneration) -> list[RemovableHandle]:
        """One before each layer of the LLM, which prunes where `full_layers` are done."""
        llm = model.model.language_model
        return [
            layer.register_forward_pre_hook(
                partial(_before_layer, llm.config, self.full_layers, index), with_kwargs=True
            )
            for index, layer in enumerate(llm.layers)
        ]

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """All patches, projected: [B, N, H]."""
        return model.multi_modal_projector(model.patch_states(pixel_values))
