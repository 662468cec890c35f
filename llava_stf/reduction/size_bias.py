"""Size correction: an image token made of s patches weighs as s keys in the LLM's attention, by a bias of log s.

That is what s equal keys would weigh together; ToMe adds it inside the tower (its equation 1), this is the same for the
tokens that the LLM reads. The bias goes into an additive mask, which fused attention takes.

Shapes: B rows, T tokens of a pass, P tokens in the cache before it, I images of M tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, LlavaConfig, LlavaForConditionalGeneration

from llava_stf.errors import FusionError
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.reduction.cache_rows import Moved, keep_beside
from llava_stf.reduction.layers import find_cache

_KEPT = "_llava_stf_key_bias"  # attribute of a cache
_MASKABLE = ("sdpa", "eager")


def check_size_bias(config: LlavaConfig, name: str) -> None:
    """Check that every layer of the LLM attends to all that stands before a token.

    Raises:
        FusionError: it does not.
    """
    text = config.text_config
    if set(getattr(text, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise FusionError(f"attention_bias of '{name}' needs an LLM whose layers all attend to the whole prompt.")


@dataclass
class _KeyBias:
    """The bias of the keys in a cache, [B, P]."""

    values: Tensor

    def moved(self, rows: Moved) -> _KeyBias:
        """See `keep_beside`."""
        return _KeyBias(rows(self.values))


class SizeBias:
    """Adds log s to the attention to image tokens, in every layer of one model's LLM.

    What encodes images sets `sizes` of `reduction.encoded`, patches of each image token, float32 [I, M].
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._inner = model.model

    def hooks(self) -> list[RemovableHandle]:
        """Puts it on the model."""
        return [
            self._inner.register_forward_pre_hook(self._see_ids, with_kwargs=True),
            self._inner.language_model.register_forward_pre_hook(self._add, with_kwargs=True),
        ]

    def _see_ids(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        encoded = self._inner.reduction.encoded
        encoded.ids = args[0] if args else kwargs.get("input_ids")
        image = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if image is None or image.last_hidden_state is not encoded.tokens:
            encoded.sizes = None  # those of other images

    def _add(self, llm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if llm.config._attn_implementation not in _MASKABLE:
            raise FusionError(
                f"attention_bias needs attention that takes a mask, {' or '.join(_MASKABLE)}; found "
                f"'{llm.config._attn_implementation}'."
            )
        states, given = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        cache, use_cache = find_cache(kwargs), kwargs.get("use_cache", llm.config.use_cache)
        if (given is not None and given.dim() != 2) or (cache is not None and cache.is_compileable):
            raise FusionError("attention_bias is for generation that is not compiled, with a cache that grows.")
        if cache is None and use_cache:
            cache = kwargs[CACHE] = DynamicCache(config=llm.config)
        past = 0 if cache is None else cache.get_seq_length()
        bias = torch.cat([self._known(cache, past, states), self._new(states)], dim=1)
        if cache is not None:
            keep_beside(cache, _KEPT, _KeyBias(bias))
        return args, kwargs | {"attention_mask": _mask(bias, past, given, states.dtype)}

    def _known(self, cache: Any, past: int, states: Tensor) -> Tensor:
        """The bias of the keys in the cache, [B, P]."""
        kept = getattr(cache, _KEPT, None)
        known = states.new_zeros(len(states), 0) if kept is None or not past else kept.values
        if known.shape[1] < past or len(known) != len(states):
            raise FusionError("With attention_bias a cache must be one that this model has filled from its beginning.")
        return known[:, :past]

    def _new(self, states: Tensor) -> Tensor:
        """The bias of the keys of this pass, [B, T]."""
        ids, sizes = self._inner.reduction.encoded.ids, self._inner.reduction.encoded.sizes
        if ids is None:
            raise FusionError("With attention_bias a prompt is told by input_ids, in which image tokens can be found.")
        places = (ids == self._inner.config.image_token_id).to(states.device)
        bias = states.new_zeros(ids.shape)
        if places.any():
            if sizes is None:
                raise FusionError(
                    "With attention_bias images are encoded for the pass that reads their tokens, and read whole: give "
                    "pixel_values, and leave prefill_chunk_size out."
                )
            images = (places.sum(1) // sizes.shape[1]).tolist()
            bias[places] = sizes[rows_of_images(images, len(sizes))].log().flatten().to(bias)
        return bias


def rows_of_images(images: list[int], encoded: int) -> Tensor:
    """Which encoded image stands at each place of a batch, whose rows may be there several times, as beams are.

    Args:
        images: how many each row has.
        encoded: images of all rows that differ.

    Returns:
        Index [sum of `images`].
    """
    times = sum(images) // encoded
    order: list[int] = []
    start = 0
    for count in images[::times]:
        order += list(range(start, start + count)) * times
        start += count
    return torch.tensor(order)


def _mask(bias: Tensor, past: int, given: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The additive mask [B, 1, T, P + T]: causal, nothing on padding, the bias elsewhere."""
    keys = torch.arange(bias.shape[1], device=bias.device)
    seen = keys <= keys[past:, None]
    if given is not None:
        seen = seen & given[:, None, None, : bias.shape[1]].to(bias.device, torch.bool)
    return bias.to(dtype)[:, None, None].masked_fill(~seen, torch.finfo(dtype).min)
