"""Dropping image tokens between the layers of the LLM: what FastV, DART, PyramidDrop and SparseVLM share.

Shapes: B rows, T tokens at some layer, S all tokens so far, I images of n tokens each, H the LLM's width.

Layers above hold fewer keys and values than layers below, so the cache has several lengths, and each has its own mask.
A method says in `stages` from which layer on how many tokens of an image are left, and in `choose` which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import Cache, LlamaModel, LlavaConfig, LlavaForConditionalGeneration
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_stf.errors import FusionError
from llava_stf.reduction.cache_rows import Moved, keep_beside
from llava_stf.reduction.layer_tokens import Tokens
from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod
from llava_stf.reduction.tensors import gather_tokens

# Under this name the state of one forward pass reaches the LLM's layers, and a cache knows what its prompt lost.
STATE = "layer_dropping"


def find_cache(arguments: dict[str, Any]) -> Cache | None:
    """The key-value cache among keyword arguments, known by its type: its name differs between transformers versions.

    Under a name that an override declares and transformers no longer uses, the cache would be passed by in silence.
    """
    return next((value for value in arguments.values() if isinstance(value, Cache)), None)


@dataclass
class _Lost:
    """What a cache knows of its prompt with images.

    Attributes:
        prompt: S of the prompt.
        stages: for each layer where a stage begins, the mask that is left, [B, tokens there], and how far the positions
            of what follows the prompt move, int64 [B].
    """

    prompt: int
    stages: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def moved(self, rows: Moved) -> _Lost:
        """See `keep_beside`."""
        return _Lost(self.prompt, {layer: (rows(mask), rows(shift)) for layer, (mask, shift) in self.stages.items()})


@dataclass
class _Pass:
    """What the layers of one forward pass share: made by the model, read and filled by the layers' hooks."""

    attention_mask: Tensor  # [B, S]
    image: Tensor | None  # bool [B, T] in the pass that reads a prompt with images
    per_image: int
    lost: _Lost | None  # `None` where the prompt has no images
    valid: Tensor | None = None  # bool [B, T]; in the pass with images, like what follows
    positions: Tensor | None = None  # int64 [B, T]; in a later pass those of the whole prompt
    marks: Tensor | None = None
    below: Tensor | None = None
    changed: dict[str, Any] = field(default_factory=dict)  # arguments of the layers from a stage on

    def tokens(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tokens:
        assert self.image is not None
        if self.valid is None:
            self.valid = self.attention_mask.bool()
        return Tokens(hidden, self.below, rotary, self.valid, self.image, self.per_image, self.marks)

    def drop(
        self,
        method: LayerDropping,
        llm: LlamaModel,
        layer: int,
        count: int,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Let the method choose, keep what that needs later, and return the hidden states that are left."""
        assert self.positions is not None
        assert self.lost is not None
        before = self.tokens(hidden, rotary)
        left, hidden = method.choose(llm, layer, before, count)
        # A stable sort puts what is dropped in front: shorter rows are padded on the left, the rest stays in order.
        longest = int(left.sum(-1).max())
        order = left.to(torch.uint8).argsort(dim=-1, stable=True)[:, left.shape[1] - longest :]
        self.valid = left.gather(1, order)
        if method.renumber:
            first = self.positions.masked_fill(~before.valid, torch.iinfo(torch.int64).max).amin(-1, keepdim=True)
            self.positions = (first + self.valid.cumsum(-1) - 1).clamp(min=0)
            moved = self.attention_mask.long().sum(-1) - self.valid.sum(-1)
        else:
            self.positions = self.positions.gather(1, order)
            moved = torch.zeros_like(order[:, 0])
        self.image, self.per_image = before.image.gather(1, order) & self.valid, count
        self.marks = None if self.marks is None else self.marks.gather(1, order)
        self.lost.stages[layer] = (self.valid.to(self.attention_mask.dtype), moved)
        return gather_tokens(hidden, order)


class LayerDropping(TrainingFreeMethod):
    """A method that drops image tokens inside the LLM. M, the budget, is what the last layers work on.

    Without a cache every new token makes a prompt of its own, and the choice is made anew.

    Attributes:
        renumber: whether tokens behind dropped ones move up to their positions, or all keep those of the whole prompt.
    """

    renumber: ClassVar[bool] = False
    reads_prompt = True

    @abstractmethod
    def stages(self, num_layers: int, patches: int, vision_tokens: int) -> dict[int, int]:
        """For each layer before which tokens are dropped (1 or higher, ascending), those of an image that are left."""

    def start(self, tokens: Tokens) -> Tensor | None:
        """Mark tokens of the prompt, bool [B, T], before the first layer; the marks follow their tokens."""
        return None

    @abstractmethod
    def choose(self, llm: LlamaModel, layer: int, tokens: Tokens, count: int) -> tuple[Tensor, Tensor]:
        """What the layers from `layer` on get: which tokens stay, bool [B, T], and hidden states, [B, T, H]."""

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Also refuse an LLM that is no LLaMA."""
        super().check(config, patches, vision_tokens)
        if config.text_config.model_type != "llama":
            raise FusionError(
                f"{self.title} prunes in the layers of LLaMA; found an LLM of type '{config.text_config.model_type}'."
            )

    def prompt_tokens(self, patches: int, vision_tokens: int) -> int:
        """All patches: they are pruned inside the LLM."""
        return patches

    def vision_tokens_per_layer(self, num_layers: int, patches: int, vision_tokens: int) -> list[int]:
        """All patches up to the first stage, then what each stage leaves, merged tokens counted as any other."""
        stages = self.stages(num_layers, patches, vision_tokens)
        counts = [patches]
        for layer in range(num_layers):
            counts.append(stages.get(layer, counts[-1]))
        return counts[1:]

    def model_class(self) -> type[ReducedLlavaModel]:
        """A model whose LLM prunes."""
        return LayerDroppingModel

    def hooks(self, model: LlavaForConditionalGeneration) -> list[RemovableHandle]:
        """One before each layer of the LLM, which prunes where a stage begins, and one before all, which refuses."""
        llm, reduction = model.model.language_model, model.model.reduction
        counts = self.vision_tokens_per_layer(len(llm.layers), reduction.patches, reduction.vision_tokens)
        stages = {layer: count for layer, count in enumerate(counts) if layer and count != counts[layer - 1]}
        return [
            model.register_forward_pre_hook(partial(_check_pass, self), with_kwargs=True),
            *(
                layer.register_forward_pre_hook(partial(_before_layer, self, llm, stages, index), with_kwargs=True)
                for index, layer in enumerate(llm.layers)
            ),
        ]

    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """All patches, projected: [B, N, H]."""
        return model.multi_modal_projector(model.patch_states(pixel_values))


class LayerDroppingModel(ReducedLlavaModel):
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
            FusionError: the method cannot prune: without `input_ids`, which say where the images are; images behind a
                cache that holds tokens already, into a static cache, or with a mask that is not [B, S]; and in a pass
                that goes on from tokens of which no cache is given.
        """
        title = self.reduction.method.title
        if input_ids is None:
            raise FusionError(
                f"{title} prunes by the place of the image in input_ids; found none, as compiled generation gives its "
                "prompts: load the model with compile=False."
            )
        cache = find_cache(kwargs)
        seen = 0 if cache is None else cache.get_seq_length()
        if cache is None and attention_mask is not None and attention_mask.shape[-1] != input_ids.shape[1]:
            raise FusionError(
                f"{title} goes on from the cache of its prompt: the mask covers {attention_mask.shape[-1]} tokens, "
                f"input_ids are {input_ids.shape[1]}, and no key-value cache was found among the arguments."
            )
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), seen + input_ids.shape[1])
        image = None
        if pixel_values is not None or kwargs.get("mm_encoder_outputs"):
            static = cache is not None and cache.is_compileable
            if seen or static or attention_mask.dim() != 2:
                raise FusionError(
                    f"{title} prunes a whole prompt with its images at once: expected an empty dynamic cache and a "
                    "mask [B, T]; a static cache and images in a later pass do not work."
                )
            image = input_ids == self.config.image_token_id
            if (image.sum(-1) % self.reduction.patches).any():
                raise FusionError(
                    f"{title} prunes a whole prompt with its images at once: a row of this pass ends within an image "
                    f"of {self.reduction.patches} tokens; leave prefill_chunk_size out."
                )
        if cache is not None and not seen:
            vars(cache).pop(STATE, None)  # of a prompt that the cache was emptied of
        lost = _Lost(attention_mask.shape[1]) if image is not None else vars(cache).get(STATE) if seen else None
        state = _Pass(attention_mask, image, self.reduction.patches, lost)
        return super().forward(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, **kwargs, **{STATE: state}
        )


def _check_pass(method: LayerDropping, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hook before the whole model: refuse what would be read as text of the prompt, or be missed in the output."""
    if kwargs.get("pixel_values") is None and not kwargs.get("mm_encoder_outputs"):
        return
    if kwargs.get("labels") is not None:
        raise FusionError(f"{method.title} has fewer logits than labels: a model that it prunes cannot be trained.")
    logits = kwargs.get("logits_to_keep", 0)
    if find_cache(kwargs) is not None and isinstance(logits, int) and logits > 1:
        raise FusionError(
            f"{method.title} prunes by what the prompt says, and the last {logits - 1} of these tokens are guesses at "
            "its answer: leave prompt_lookup_num_tokens and assistant_model out."
        )


def _before_layer(
    method: LayerDropping,
    llm: LlamaModel,
    stages: Mapping[int, int],
    index: int,
    layer: LlamaDecoderLayer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hook before layer `index`: where a stage begins, drop tokens, or go on from a prompt that has lost them."""
    state: _Pass | None = kwargs.pop(STATE, None)
    if state is None:
        raise FusionError(
            f"{method.title} prunes in the whole LLaVA; its language model cannot be called or compiled alone."
        )
    if state.lost is None:
        return args, kwargs  # a prompt without images
    hidden, cache = args[0], find_cache(kwargs)
    if index == 0:
        state.positions = kwargs["position_ids"].expand(len(hidden), -1)
        if state.image is not None:
            state.marks = method.start(state.tokens(hidden, kwargs["position_embeddings"]))
    kwargs |= state.changed
    if index in stages:
        if state.image is not None:
            hidden = state.drop(method, llm, index, stages[index], hidden, kwargs["position_embeddings"])
            if cache is not None:
                keep_beside(cache, STATE, state.lost)
        assert state.positions is not None
        left, moved = state.lost.stages[index]
        mask = torch.cat([left, state.attention_mask[:, state.lost.prompt :]], dim=1)
        positions = state.positions if state.image is not None else state.positions - moved[:, None]
        state.changed = {
            "attention_mask": create_causal_mask(llm.config, hidden, mask, cache, layer_idx=index),
            "position_ids": positions,
            "position_embeddings": llm.rotary_emb(hidden, position_ids=positions),
        }
        kwargs |= state.changed
    if state.image is not None and index + 1 in stages:
        state.below = hidden
    return (hidden, *args[1:]), kwargs
