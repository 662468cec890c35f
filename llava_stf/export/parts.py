"""The three parts of a LLaVA that are exported, as modules that take and give tensors alone, and their traces.

Shapes: B images or rows, S the image's side, M vision tokens of an image, H the LLM's width, T tokens of this step,
P tokens in the cache, h key heads of width d, V the vocabulary.

    vision       pixel_values [B, 3, S, S] -> [B, M, H], the tower with its projector and whatever shortens its tokens
    embeddings   ids [B, T] -> [B, T, H]
    decoder      [B, T, H], mask [B, P + T], positions [B, T], keys and values [B, h, P, d] of each layer
                 -> logits [B, T, V], keys and values [B, h, P + T, d]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import LlavaForConditionalGeneration
from transformers.cache_utils import Cache

from llava_stf.errors import ExportError
from llava_stf.models.fusion.budget import tokens_per_image
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.models.vision.states import select_hidden_states, select_patch_states
from llava_stf.reduction.model import ReducedLlavaModel, TrainingFreeMethod

# Sizes of what is traced. None is 0 or 1, which a trace would take for fixed, and no two are alike.
_ROWS, _STEP, _PAST = 2, 3, 5


class Vision(nn.Module):
    """Tower and projector in one."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, M, H]. Not by `get_image_features`, whose list of images would fix B."""
        model, config = self.model, self.model.config
        if isinstance(model, ReducedLlavaModel):
            method = model.reduction.method
            assert isinstance(method, TrainingFreeMethod)
            return method.image_tokens(model, pixel_values)
        if isinstance(config, FusionConfig):
            states = select_patch_states(model.vision_tower, pixel_values, config.fusion_states)
            return model.multi_modal_projector(states, config.fusion_window)
        layers = config.vision_feature_layer
        states = select_hidden_states(model.vision_tower, pixel_values, [layers] if isinstance(layers, int) else layers)
        if config.vision_feature_select_strategy == "default":
            states = [state[:, 1:] for state in states]
        return model.multi_modal_projector(torch.cat(states, dim=-1))


class _FlatCache(Cache):
    """A cache of plain tensors: what `DynamicCache` does, in a form that every exporter follows."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        super().__init__(layers=[])
        self.keys, self.values = list(keys), list(values)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Appends what is new of a layer and returns all of it."""
        self.keys[layer_idx] = torch.cat([self.keys[layer_idx], key_states], dim=2)
        self.values[layer_idx] = torch.cat([self.values[layer_idx], value_states], dim=2)
        return self.keys[layer_idx], self.values[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """P."""
        return self.keys[layer_idx].shape[2]


class Decoder(nn.Module):
    """The language model with its head, whose cache goes in and comes out as tensors."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.language_model, self.head = model.model.language_model, model.get_output_embeddings()

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """As the module's head says; `attention_mask` is 1 where there is a token and 0 on padding, int64."""
        cache = _FlatCache(keys, values)
        rows = keys[0].shape[2] + torch.arange(inputs_embeds.shape[1])
        causal = torch.arange(attention_mask.shape[1]) <= rows[:, None]
        mask = causal & (attention_mask[:, None, None] != 0)  # [B, 1, T, P + T], which transformers takes as it is
        fixed = {"attention_mask": mask, "position_ids": position_ids, CACHE: cache, "use_cache": True}
        states = self.language_model(inputs_embeds=inputs_embeds, **fixed).last_hidden_state
        return self.head(states), cache.keys, cache.values


def trace_vision(model: LlavaForConditionalGeneration) -> ExportedProgram:
    """The program of `Vision`.

    Raises:
        ExportError: the number or choice of an image's tokens is no function of its pixels that can be written down.
    """
    side, width = model.config.vision_config.image_size, model.config.text_config.hidden_size
    part = Vision(model)
    program = _trace(part, (torch.rand(_ROWS, 3, side, side),), ({0: Dim.AUTO},), "its vision part")
    with torch.no_grad():
        found, expected = part(torch.rand(1, 3, side, side)).shape[1:], (tokens_per_image(model.config), width)
    if found != expected:
        raise ExportError(f"Expected the vision part to give {expected} for an image, found {tuple(found)}.")
    return program


def trace_embeddings(model: LlavaForConditionalGeneration) -> ExportedProgram:
    """The program of the table of embeddings."""
    ids = torch.zeros(_ROWS, _STEP, dtype=torch.int64)
    return _trace(model.get_input_embeddings(), (ids,), ({0: Dim.AUTO, 1: Dim.AUTO},), "its embeddings")


def trace_decoder(model: LlavaForConditionalGeneration) -> ExportedProgram:
    """The program of `Decoder`."""
    text = model.config.text_config
    layers, heads, width = text.num_hidden_layers, text.num_key_value_heads, head_width(text)
    cache = [torch.rand(_ROWS, heads, _PAST, width) for _ in range(2 * layers)]
    inputs = (
        torch.rand(_ROWS, _STEP, text.hidden_size),
        torch.ones(_ROWS, _PAST + _STEP, dtype=torch.int64),
        torch.arange(_PAST, _PAST + _STEP).repeat(_ROWS, 1),
        cache[:layers],
        cache[layers:],
    )
    step, past = {0: Dim.AUTO, 1: Dim.AUTO}, [{0: Dim.AUTO, 2: Dim.AUTO}] * layers
    return _trace(Decoder(model), inputs, (step, step, step, past, past), "its language model")


def head_width(text: Any) -> int:
    """Width d of an attention head of a language model's config."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


@torch.no_grad()
def _trace(part: nn.Module, inputs: tuple[Any, ...], dynamic: tuple[Any, ...], what: str) -> ExportedProgram:
    try:
        return torch.export.export(part.eval(), inputs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # whatever a model's own code raises when it is run without values
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"This model cannot be exported: {what} is no fixed graph ({reason}).") from error
