"""Conversations that do not start over: keys and values of what a model has read serve every prompt that begins alike.

A prompt is rendered and tokenised as a whole in any case, and compared with what was read before, ids and images: up
to the first difference nothing is computed again. So an answer is that of a fresh prompt, whether the history was
extended, edited or cut, and whatever became of an answer when it was tokenised again. An image is taken over as a whole
or not at all.

Shapes: B rows, P tokens that are known of the row with most of them, N that are new of the row with most of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache, GenerationConfig, StoppingCriteria

from llava_stf.inference.image_cache import stamp_of
from llava_stf.inference.interface import Pipeline
from llava_stf.inference.prefix import Prefix, PrefixCache, Prompt, places_of, shared
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.models.fusion.processing import FusedProcessing
from llava_stf.models.fusion.tiles import shows_several_whole, takes_videos
from llava_stf_kernels import place_tokens

# Keywords of `generate` that need a cache, a loop or a preparation of their own.
_OTHER_WAYS = (
    "num_beams", "num_return_sequences", "assistant_model", "prompt_lookup_num_tokens", "custom_generate", "use_cache",
    "cache_implementation", "cache", "past_key_values", "prefill_chunk_size", "generation_config", "stop_strings",
    "guidance_scale", "penalty_alpha", "dola_layers",
)  # fmt: skip
WORTH_SHARING = 32  # tokens at the begin of several prompts of a batch that are read for all of them at once


def other_ways(options: Mapping[str, Any], defaults: GenerationConfig) -> list[str]:
    """The keywords of `generate`, given or in the model's settings, with which it does not just go on from a cache."""
    return [name for name in _OTHER_WAYS if options.get(name, getattr(defaults, name, None)) not in (None, 1)]


def reuses(llava: Pipeline) -> bool:
    """Whether image tokens and what was read serve other prompts, too.

    Not where a method chooses tokens by the question (FastV) or their sizes are in the attention, where generation is
    compiled and its cache static, where the language model does not keep all keys and values or an export keeps them
    in 8 bits, which is not how it reads a whole prompt, where the tokens of an image depend on the images beside it or
    a prompt holds videos, or where the processor is not of this package.
    """
    model, text = llava.model, llava.model.config.text_config
    reduction = getattr(getattr(model, "model", None), "reduction", None)
    if llava.compiled or not isinstance(llava.processor, FusedProcessing):
        return False
    if not hasattr(getattr(model, "model", None), "language_model"):  # in a wrapper of PEFT, for one
        return False
    if shows_several_whole(model.config) or takes_videos(model.config):
        return False
    if reduction is not None and (reduction.method.reads_prompt or reduction.method.attention_bias):
        return False
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None)
    whole = kinds == {"full_attention"} or (kinds <= {"full_attention", "sliding_attention"} and window is not None)
    hands_out = getattr(model, "hands_out_cache", not getattr(model, "_is_stateful", False))
    return whole and (window is None or window >= llava.positions) and hands_out


class Reading:
    """Prompts on their way through the model as one batch: what is known of them, what is to be read, what was read.

    A row's known tokens stand behind padding, and so do its new ones.

    Args:
        llava: a pipeline that `reuses`.
        prompts: of the batch.
        known: where prefixes are looked for and kept; `None` has none.
        to_finish: whether `finish` reads the prompts, all of each in one pass, and not `generate`.

    Attributes:
        inputs: for `LlavaStf.generate`: ids and mask [B, P + N], and the cache, which holds all up to the last image.
        cached: tokens of each prompt that were known.
    """

    def __init__(
        self,
        llava: Pipeline,
        prompts: Sequence[Prompt],
        known: PrefixCache | None = None,
        *,
        to_finish: bool = False,
    ) -> None:
        self._llava = llava
        self._image_id = llava.model.config.image_token_id
        self._prompts = prompts
        self._ids = [np.asarray(prompt.ids) for prompt in prompts]
        self._places = [
            places_of(ids, prompt.images, self._image_id) for ids, prompt in zip(self._ids, prompts, strict=True)
        ]
        if known is not None:
            known.renew(stamp_of(llava.model))
        llava.image_cache.encode(image for prompt in prompts for image in prompt.images)
        # A prompt that ends with an image leaves no token for `generate` to begin with, and is read as a whole.
        self._at_end = any(ids[-1] == self._image_id for ids in self._ids)
        found: list[tuple[Prefix | None, int]] = [(None, 0)] * len(prompts)
        if known is not None and not self._at_end:
            found = self._find(known)
        self.cached = [length for _, length in found]
        self._cache: Any = None
        self._tokens: Tensor | None = None  # of images that no pass has read yet
        self.inputs = self._read(found, keeps=known is not None, to_finish=to_finish)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Reads what is new of every prompt: logits [B, V] behind it, float32."""
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        start = self._cache.get_seq_length()
        logits = self._llava.model(
            inputs_embeds=self._embed(ids[:, start:], self._tokens),
            attention_mask=mask,
            position_ids=_positions(mask)[:, start:],
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: self._cache},
        ).logits
        return logits[:, -1].float()

    def prefixes(self, sequences: Tensor, lengths: Sequence[int]) -> list[Prefix]:
        """What was read of each row, and what was answered.

        Args:
            sequences: ids [B, P + N + T] that `generate` gave.
            lengths: tokens of each answer.
        """
        if self._cache is None:
            return []
        width = self.inputs["input_ids"].shape[1]
        answered = self._cache.get_seq_length() - width  # the last token of an answer is not read any more
        prefixes, layers = [], _layers_of(self._cache)
        for row, (ids, places) in enumerate(zip(self._ids, self._places, strict=True)):
            length = min(lengths[row], answered)
            columns = self.inputs["attention_mask"][row].nonzero()[:, 0]
            if length:
                columns = torch.cat([columns, torch.arange(width, width + length, device=columns.device)])
            answer = sequences[row, width : width + length].cpu().numpy()
            prefixes.append(Prefix(np.concatenate([ids, answer]), places, _rows_of(layers, row, columns)))
        return prefixes

    def _find(self, known: PrefixCache) -> list[tuple[Prefix | None, int]]:
        """The known begin of each prompt; what several of them begin with alike is read before."""

        def find() -> list[tuple[Prefix | None, int]]:
            return [known.find(ids, places) for ids, places in zip(self._ids, self._places, strict=True)]

        found, rows = find(), range(len(self._ids))
        begins = [(ids[:-1], places) for ids, places in zip(self._ids, self._places, strict=True)]
        alike = [max((shared(begins[row], begins[other]) for other in rows if other != row), default=0) for row in rows]
        for _ in rows:
            row = max(rows, key=lambda row: alike[row] - found[row][1])
            if alike[row] - found[row][1] < WORTH_SHARING:
                break
            before = found[row][1]
            self._read_begin(row, alike[row], found[row], known)
            found = find()
            if found[row][1] == before:  # there was no room to keep it
                break
        return found

    @torch.no_grad()
    def _read_begin(self, row: int, length: int, found: tuple[Prefix | None, int], known: PrefixCache) -> None:
        """Reads the first tokens of a prompt, no image being cut, and keeps them."""
        ids, mask = self._lay_out([self._ids[row][:length]], [found[1]])
        cache = self._cache_of([found])
        self._fill(cache, ids, mask, found[1], length, self._new_tokens([row], [found[1]], length))
        places = [place for place in self._places[row] if place[2] <= length]
        columns = torch.arange(length, device=ids.device)
        known.put(Prefix(self._ids[row][:length], places, _rows_of(_layers_of(cache), 0, columns)))

    @torch.no_grad()
    def _read(self, found: list[tuple[Prefix | None, int]], *, keeps: bool, to_finish: bool) -> BatchFeature:
        """The batch, read up to its last image unless that is left to `finish`."""
        ids, mask = self._lay_out(self._ids, self.cached)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        tokens = self._new_tokens(range(len(self._ids)), self.cached)
        if to_finish:
            self._cache, self._tokens = self._cache_of(found), tokens
        elif self._at_end:
            inputs["inputs_embeds"] = self._embed(ids, tokens)
        elif tokens is not None or keeps:
            self._cache = inputs[CACHE] = self._cache_of(found)
            start = max(self.cached)
            images = (ids[:, start:] == self._image_id).any(0).nonzero()
            if len(images):
                self._fill(self._cache, ids, mask, start, start + int(images[-1]) + 1, tokens)
        return BatchFeature(inputs)

    def _lay_out(self, ids: Sequence[np.ndarray], cached: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, P + N]."""
        most = max(cached)
        width = most + max(len(row) - length for row, length in zip(ids, cached, strict=True))
        pad = self._llava.processor.tokenizer.pad_token_id  # type: ignore[union-attr]
        laid, mask = np.full((len(ids), width), pad), np.zeros((len(ids), width), dtype=int)
        for row, (values, length) in enumerate(zip(ids, cached, strict=True)):
            for at, part in ((most - length, values[:length]), (width - len(values) + length, values[length:])):
                laid[row, at : at + len(part)], mask[row, at : at + len(part)] = part, 1
        device = self._llava.model.device
        return torch.from_numpy(laid).to(device), torch.from_numpy(mask).to(device)

    def _new_tokens(self, rows: Sequence[int], cached: Sequence[int], end: int | None = None) -> Tensor | None:
        """The tokens [R, H] of all images behind what is known, in the order of the prompts."""
        tokens = [
            image.tokens
            for row, length in zip(rows, cached, strict=True)
            for image, (_, first, last) in zip(self._prompts[row].images, self._places[row], strict=True)
            if first >= length and (end is None or last <= end)
        ]
        return torch.cat(tokens) if tokens else None  # type: ignore[arg-type]  # all are encoded

    def _cache_of(self, found: Sequence[tuple[Prefix | None, int]]) -> Any:
        """A cache with what is known of each row, behind padding."""
        layers = []
        most = max(length for _, length in found)
        known = [prefix.layers for prefix, _ in found if prefix is not None]
        for layer in range(len(known[0]) if most else 0):
            joined = []
            for kind, like in enumerate(known[0][layer]):
                rows = like.new_zeros(len(found), len(like), most, like.shape[2])
                for row, (prefix, length) in enumerate(found):
                    if prefix is not None:
                        rows[row, :, most - length :] = prefix.layers[layer][kind][:, :length]
                joined.append(rows)
            layers.append((joined[0], joined[1]))
        return _new_cache(self._llava.model, layers)

    def _fill(self, cache: Any, ids: Tensor, mask: Tensor, start: int, stop: int, tokens: Tensor | None) -> None:
        """Reads the columns from `start` to `stop` behind those in the cache."""
        self._llava.model.model.language_model(
            inputs_embeds=self._embed(ids[:, start:stop], tokens),
            attention_mask=mask[:, :stop],
            position_ids=_positions(mask)[:, start:stop],
            use_cache=True,
            **{CACHE: cache},
        )

    def _embed(self, ids: Tensor, tokens: Tensor | None) -> Tensor:
        """Embeddings of ids [B, T] with image tokens in their places: [B, T, H]."""
        embeddings = self._llava.model.get_input_embeddings()(ids)
        if tokens is None:
            return embeddings
        places = ids == self._image_id
        return place_tokens(embeddings, tokens.to(embeddings), places, backend="torch")


class Heard(StoppingCriteria):
    """The ids of a batch as far as they have come; ends nothing."""

    ids: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """False for each row of `input_ids` [B, L + T]."""
        self.ids = input_ids
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _positions(mask: Tensor) -> Tensor:
    """The place of each token in its row, of a mask [B, P + N]."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _new_cache(model: Any, layers: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """A cache of the model's own kind that holds keys and values [B, heads, P, head width] of each layer, or nothing.

    That of an export lies in its engine, `EngineCache` of `llava_stf.export.model`.
    """
    if hasattr(model, "new_cache"):
        return model.new_cache(layers)
    cache = DynamicCache(config=model.config.text_config)
    for number, layer in enumerate(layers):
        cache.update(*layer, number)
    return cache


def _layers_of(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [B, heads, P, head width] of each layer."""
    if hasattr(cache, "keys_and_values"):
        return cache.keys_and_values()
    return [(layer.keys, layer.values) for layer in cache.layers]


def _rows_of(layers: Sequence[tuple[Tensor, Tensor]], row: int, columns: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [heads, n, head width] of some columns; all of a cache of one row are not copied."""
    if len(layers[0][0]) == 1 and len(columns) == layers[0][0].shape[2]:
        return [(keys[0], values[0]) for keys, values in layers]
    return [(keys[row, :, columns.to(keys.device)], values[row, :, columns.to(keys.device)]) for keys, values in layers]
