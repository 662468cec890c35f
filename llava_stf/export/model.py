"""A LLaVA whose parts another engine runs, as transformers' `generate` and this package's pipeline know a LLaVA.

Logits processors, streamers, stop strings, sampling and beams are those of `generate`; an engine computes image tokens,
embeddings and logits, and keeps the cache. Shapes as in `llava_stf.export.parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from llava_stf.errors import ExportError, FusionError
from llava_stf.models.fusion.budget import ImageSizes, VisionTokens
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
from llava_stf_kernels import place_tokens

Array = NDArray[Any]


class EngineState(Protocol):
    """The keys and values of one `generate`, in an engine."""

    def step(self, embeddings: Array, mask: Array, positions: Array, rows: Array, keep: int) -> Array:
        """Logits [B, keep, V] of the last tokens, the cache taking in [B, T, H]; `keep` 0 gives all.

        `rows` [B], int32: the row of the step before that each goes on from.
        """
        ...

    def layers(self) -> list[Array]:
        """Keys of every layer, then values, as copies [B, h, P, d]; of rows in the order of the last step."""
        ...

    def fill(self, layers: list[Array]) -> None:
        """Takes what `layers` gave, before the first step."""
        ...


class Engine(Protocol):
    """What runs the parts of an export."""

    def image_tokens(self, pixel_values: Array) -> Array:
        """[B, 3, S, S] -> [B, M, H]."""
        ...

    def embeddings(self, ids: Array) -> Array:
        """[B, T] -> [B, T, H]."""
        ...

    def start(self) -> EngineState:
        """An empty cache; several may be in use at a time."""
        ...


class EngineCache(Cache):
    """The cache of a `generate` that runs on an engine."""

    def __init__(self, state: EngineState) -> None:
        super().__init__(layers=[])
        self.state, self.length = state, 0
        self._rows: Tensor | None = None  # what `reorder_cache` asked for and no step has done yet

    def step(self, embeddings: Tensor, mask: Tensor, positions: Tensor, keep: int) -> Tensor:
        """As `EngineState.step`, of tensors.

        Raises:
            ValueError: the mask is not of all tokens; an engine that fails in the middle of a step may stay broken.
        """
        known = self.length + embeddings.shape[1]
        if mask.shape != (len(embeddings), known):
            raise ValueError(
                f"Expected a mask of {len(embeddings)} rows and {known} tokens, found {tuple(mask.shape)}."
            )
        rows = torch.arange(len(embeddings)) if self._rows is None else self._rows
        inputs = embeddings.numpy(), mask.numpy(), positions.numpy(), rows.to(torch.int32).numpy()
        logits = torch.from_numpy(self.state.step(*inputs, keep))
        self._rows, self.length = None, known
        return logits

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in it."""
        return self.length

    @property
    def is_linear(self) -> list[bool]:
        """Of no layer: it holds keys and values, behind which `generate` goes on."""
        return [False]

    def fill(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Takes keys and values [B, h, P, d] of each layer, before the first step."""
        self.state.fill([pair[kind].numpy() for kind in (0, 1) for pair in layers])
        self.length = layers[0][0].shape[2]

    def keys_and_values(self) -> list[tuple[Tensor, Tensor]]:
        """Of each layer, [B, h, P, d]."""
        arrays = [torch.from_numpy(array) for array in self.state.layers()]
        return list(zip(arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :], strict=True))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on from these rows, as beam search asks."""
        self._rows = beam_idx if self._rows is None else self._rows[beam_idx]


class ExportedLlavaConfig(LlavaConfig):
    """A plain LLaVA's config that knows how many tokens the exported vision part gives, and what the cache holds.

    Attributes:
        vision_tokens: of every image.
        kv_cache: precision of keys and values, `"f32"` or `"u8"`.
    """

    vision_tokens: int = 0
    kv_cache: str = "f32"

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: VisionTokens = None) -> list[int]:
        """LLM tokens of each image, see `llava_stf.models.fusion.budget`."""
        if vision_tokens not in (None, self.vision_tokens):
            raise FusionError(
                f"This export gives {self.vision_tokens} tokens for every image, and not {vision_tokens}; export the "
                "model once more for another number."
            )
        return [self.vision_tokens] * len(image_sizes)


class ExportedProcessor(LlavaStfProcessor):
    """Counts the placeholders that the exported vision part fills."""

    vision_tokens: int

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each preprocessed image, whatever its size."""
        return super().num_image_tokens(image_sizes, self.vision_tokens if vision_tokens is None else vision_tokens)


class ExportedLlava(LlavaForConditionalGeneration):
    """A LLaVA on an engine: it answers, and has no weights of its own to train, patch or save."""

    config_class = ExportedLlavaConfig
    config: ExportedLlavaConfig
    _is_stateful = True  # its cache lies in the engine, and nothing is taken back out of it

    def __init__(self, config: ExportedLlavaConfig, engine: Engine, generation_config: GenerationConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.generation_config = generation_config
        self.engine = engine
        self.model = _Body()
        super().train(False)

    @property
    def device(self) -> torch.device:
        """Where its inputs are to be."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of its inputs and outputs, whatever the engine computes in."""
        return torch.float32

    @property
    def hands_out_cache(self) -> bool:
        """Whether keys and values can be kept for another prompt: 8 bits are not what a whole prompt is read with."""
        return self.config.kv_cache == "f32"

    def new_cache(self, layers: Sequence[tuple[Tensor, Tensor]] = ()) -> EngineCache:
        """A cache that holds keys and values [B, h, P, d] of each layer, or nothing."""
        cache = EngineCache(self.engine.start())
        if layers:
            cache.fill(layers)
        return cache

    def get_input_embeddings(self) -> Any:
        """The table of embeddings, ids [B, T] -> [B, T, H]."""
        return lambda ids: torch.from_numpy(self.engine.embeddings(ids.numpy()))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, over a cache in the engine."""
        if kwargs.get("cache", kwargs.get("past_key_values")) is None and kwargs.get("use_cache") is not False:
            kwargs[CACHE] = self.new_cache()
        return super().generate(*args, **kwargs)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Image tokens in `pooler_output`, one [M, H] for each image of [B, 3, S, S]."""
        tokens = torch.from_numpy(self.engine.image_tokens(pixel_values.float().numpy()))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=list(tokens))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: EngineCache | None = None,
        cache: EngineCache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        logits_to_keep: int = 0,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Logits [B, T, V], or of the last `logits_to_keep` tokens, and the cache with what is new in it.

        Raises:
            ExportError: a loss was asked for.
            ValueError: the placeholders are not as many as the images' tokens.
        """
        if labels is not None:
            _refuse("trained")
        cache = past_key_values if cache is None else cache
        if cache is None or use_cache is False:
            cache = self.new_cache()
        features = (mm_encoder_outputs or {}).get("image")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if pixel_values is not None:
                features = self.get_image_features(pixel_values)
            if features is not None:
                places = input_ids == self.config.image_token_id
                inputs_embeds = place_tokens(inputs_embeds, torch.cat(list(features.pooler_output)), places)
        rows, length = inputs_embeds.shape[:2]
        if attention_mask is None:  # `generate` drops one that hides nothing
            attention_mask = torch.ones(rows, cache.length + length, dtype=torch.int64)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        positions = position_ids.expand(rows, length)
        logits = cache.step(inputs_embeds, attention_mask.to(torch.int64), positions, logits_to_keep)
        return LlavaCausalLMOutputWithPast(logits=logits, **{CACHE: None if use_cache is False else cache})

    def train(self, mode: bool = True) -> ExportedLlava:
        """Refuse, but for `eval`.

        Raises:
            ExportError: training was asked for.
        """
        return _refuse("trained") if mode else self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse.

        Raises:
            ExportError: always.
        """
        _refuse("saved; copy its folder")


class _Body:
    """Where the parts of a LLaVA are looked for."""

    def language_model(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        use_cache: bool,
        past_key_values: EngineCache | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        """Reads [B, T, H] into the cache."""
        into = past_key_values if cache is None else cache
        assert into is not None
        into.step(inputs_embeds, attention_mask, position_ids, keep=1)


def _refuse(what: str) -> Any:
    raise ExportError(f"An exported model cannot be {what}, or take the model that it was exported from.")
