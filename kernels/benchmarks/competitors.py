"""The operations and the whole projector: random arguments, and the implementations that are measured.

Arguments have the checkpoint's order of columns; a competitor's `prepare` re-lays the window weight once, which is not
timed. Of the projector "ours" is the product's own module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import formulas
import torch
from shapes import TEXT_TOKENS, Widths
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig

from llava_stf.models.fusion.build import use_kernels
from llava_stf.models.fusion.projector import LlavaStfProjector
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf_kernels import (
    fuse_blocks,
    fuse_windows,
    place_tokens,
    pool_tokens,
)

Arguments = tuple[Any, ...]
# The compiled ones take tens of seconds each to compile, the others seconds in all.
QUICK = ("ours", "eager", "conv")
COMPILE_MODES = {"compile": "max-autotune", "compile-no-graphs": "max-autotune-no-cudagraphs"}
IMPLEMENTATIONS = (*QUICK, *COMPILE_MODES)


def _unchanged(weight: Tensor, window: int) -> Tensor:
    return weight


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation. `prepare` re-lays the window weight, `restore` gives back its columns' order."""

    call: Callable[..., Tensor]
    prepare: Callable[[Tensor, int], Tensor] = _unchanged
    restore: Callable[[Tensor], Tensor] = torch.clone
    capturable: bool = True  # into a CUDA graph: it never waits for the device
    own_graphs: bool = False  # its memory then lies in their pool, where no peak can be read


@dataclass(frozen=True)
class Operation:
    """What is measured. `eager` is the reference, too, computed on the arguments in float32."""

    name: str
    draw: Callable[[Widths, int, torch.device, torch.dtype], Arguments]
    eager: Callable[..., Tensor]
    ours: Implementation
    conv: Implementation | None = None
    window_weight: int | None = None  # the argument that `prepare` re-lays
    leaves: tuple[int, ...] = ()  # arguments whose gradients backward computes; none: forward only
    shared: tuple[int, ...] = ()  # arguments too large for a cache: one copy serves every call

    def implementation(self, name: str) -> Implementation:
        """The one of that name; a compiled one is not compiled before its first call."""
        if name == "ours":
            return self.ours
        if name == "conv":
            assert self.conv is not None
            return self.conv
        if name == "eager":
            return Implementation(self.eager, capturable=self.name != "place_tokens")
        torch.compiler.reset()
        compiled = torch.compile(self.eager, mode=COMPILE_MODES[name], dynamic=False, fullgraph=True)
        return Implementation(compiled, capturable=name != "compile", own_graphs=name == "compile")


def product_projector(kernels: str) -> Callable[..., Tensor]:
    """`LlavaStfProjector` itself, called as the formulas are, with its parameters and the window behind the states."""
    assembled: dict[int, LlavaStfProjector] = {}  # by its first weight, which it keeps alive

    def project(states: Sequence[Tensor], *parameters: Any) -> Tensor:
        *layers, window = parameters
        if id(layers[0]) not in assembled:
            assembled.clear()
            assembled[id(layers[0])] = _assemble_projector(len(states), layers, window, kernels)
        return assembled[id(layers[0])](states)

    return project


def _assemble_projector(states: int, layers: Sequence[Tensor], window: int, kernels: str) -> LlavaStfProjector:
    width, llm = layers[2].shape[0], layers[6].shape[0]
    config = LlavaStfConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width, num_hidden_layers=states, num_attention_heads=1, image_size=14 * window, patch_size=14
        ),
        text_config=LlamaConfig(hidden_size=llm, num_attention_heads=1),
        fusion_layers=list(range(states, 0, -1)),
        fusion_window=window,
        fusion_block_hidden_size=layers[0].shape[0],
        fusion_hidden_size=layers[4].shape[0],
    )
    with torch.device("meta"):
        projector = LlavaStfProjector(config)
    names = [name for name, _ in projector.named_parameters()]
    projector.load_state_dict(dict(zip(names, layers, strict=True)), assign=True)
    use_kernels(projector, kernels)
    return projector


def _linear(inputs: int, outputs: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias that keep random normal inputs at a spread of about one."""
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype) / math.sqrt(inputs)
    return weight, torch.randn(outputs, device=device, dtype=dtype)


def _draw_state(widths: Widths, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The patches of a tower with a class token: a view [B, N, C] that steps over it."""
    return torch.randn(batch, widths.patches + 1, widths.vision, device=device, dtype=dtype)[:, 1:]


def _draw_states(widths: Widths, batch: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [_draw_state(widths, batch, device, dtype) for _ in range(widths.states)]


def _draw_pool_tokens(widths: Widths, batch: int, device: torch.device, dtype: torch.dtype) -> Arguments:
    return _draw_state(widths, batch, device, dtype), widths.window


def _draw_fuse_blocks(widths: Widths, batch: int, device: torch.device, dtype: torch.dtype) -> Arguments:
    states = _draw_states(widths, batch, device, dtype)
    return states, *_linear(*widths.layers[0], device, dtype)


def _draw_fuse_windows(widths: Widths, batch: int, device: torch.device, dtype: torch.dtype) -> Arguments:
    x = torch.randn(batch, widths.patches, widths.vision, device=device, dtype=dtype)
    return x, *_linear(*widths.layers[2], device, dtype), widths.window


def _draw_place_tokens(widths: Widths, batch: int, device: torch.device, dtype: torch.dtype) -> Arguments:
    """Prompts of 64 text tokens with the image in their middle."""
    embeddings = torch.randn(batch, widths.tokens + TEXT_TOKENS, widths.llm, device=device, dtype=dtype)
    tokens = torch.randn(batch * widths.tokens, widths.llm, device=device, dtype=dtype)
    mask = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=device)
    mask[:, TEXT_TOKENS // 2 : TEXT_TOKENS // 2 + widths.tokens] = True
    return embeddings, tokens, mask


def _draw_projector(widths: Widths, batch: int, device: torch.device, dtype: torch.dtype) -> Arguments:
    parameters = [nn.Parameter(tensor) for layer in widths.layers for tensor in _linear(*layer, device, dtype)]
    for parameter in parameters:  # as those of a compiled module: its CUDA graph then reads them where they are
        torch._dynamo.mark_static_address(parameter)
    return _draw_states(widths, batch, device, dtype), *parameters, widths.window


def operations(backend: str) -> dict[str, Operation]:
    """All that is measured; `backend` ("triton" or "torch") is that of "ours"."""
    conv_windows = formulas.conv_fuse_windows
    as_conv = partial(Implementation, prepare=formulas.as_convolution, restore=partial(torch.flatten, start_dim=1))
    found = (
        Operation(
            "pool_tokens",
            _draw_pool_tokens,
            formulas.pool_tokens,
            Implementation(partial(pool_tokens, backend=backend)),
        ),
        Operation(
            "fuse_blocks",
            _draw_fuse_blocks,
            formulas.fuse_blocks,
            Implementation(partial(fuse_blocks, backend=backend)),
            leaves=(0, 1, 2),
        ),
        Operation(
            "fuse_windows",
            _draw_fuse_windows,
            formulas.fuse_windows,
            Implementation(partial(fuse_windows, backend=backend)),
            as_conv(conv_windows),
            window_weight=1,
            leaves=(0, 1, 2),
        ),
        Operation(
            "place_tokens",
            _draw_place_tokens,
            formulas.place_tokens,
            Implementation(partial(place_tokens, backend=backend)),
        ),
        Operation(
            "projector",
            _draw_projector,
            formulas.projector(formulas.fuse_blocks, formulas.fuse_windows),
            Implementation(product_projector(backend)),
            as_conv(formulas.projector(formulas.fuse_blocks, conv_windows)),
            window_weight=5,
            leaves=tuple(range(1, 9)),
            shared=tuple(range(1, 9)),
        ),
    )
    return {operation.name: operation for operation in found}
