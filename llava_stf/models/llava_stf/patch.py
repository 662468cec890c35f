"""Turn a loaded LLaVA into a LLaVA-STF in place, and back.

`apply_stf` makes the model exactly what `LlavaStfForConditionalGeneration` is (class, config, projector), so that
there is one code path and `save_pretrained` writes an ordinary LLaVA-STF. `remove_stf` puts the former parts back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel, LlavaProcessor

from llava_stf.errors import FusionError
from llava_stf.models.fusion.projector import (
    LlavaStfProjector,
    PooledProjector,
    build_projector,
    init_from_pooling,
    use_kernels,
)
from llava_stf.models.llava_stf.adapter import load_adapter
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.modeling_llava_stf import (
    LlavaStfForConditionalGeneration,
    LlavaStfModel,
    run_all_blocks,
    skip_unused_blocks,
)
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
from llava_stf.models.vision.towers import special_tokens

WINDOW_FIELDS = ("fusion_window", "fusion_windows", "fusion_weight_window")
# The paper's window: whatever other windows are served, the number of weights stays that of the published model.
SHARED_WEIGHT_WINDOW = 2


@dataclass
class _Original:
    """What `remove_stf` puts back. A plain object, so that the former projector is no submodule of the model."""

    config: LlavaConfig
    projector: nn.Module


def apply_stf(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor | None = None,
    *,
    window: int | Sequence[int] = 2,
    fusion_layers: list[int] | None = None,
    init: Literal["pool", "random"] | str | Path = "pool",
    seed: int = 0,
    kernels: Literal["auto", "triton", "torch"] = "auto",
) -> LlavaStfForConditionalGeneration:
    """Make a loaded LLaVA fuse each `window` x `window` patches into one vision token, in place.

    Args:
        model: a plain `LlavaForConditionalGeneration`; its LLM may be quantized.
        processor: its processor, changed in place to count and tokenise for the fused model.
        window: side k of a window; must divide the patch grid (24 at 336 px). An adapter file brings its own. A list
            makes a model for each of its windows with one set of weights, those for 2x2; the first is the default.
        fusion_layers: tower states that MBTF joins, in channel order; default by the tower's depth.
        init: `"pool"` starts as the exact mean of the base projector's outputs over each window, `"random"` with
            PyTorch's Linear initialisation as in the paper's first stage, a path loads the adapter file (safetensors
            or `mm_projector.bin`) written there.
        seed: of the random weights.
        kernels: what the projector runs on, see `use_kernels`.

    Returns:
        The same object, now a `LlavaStfForConditionalGeneration`.

    Raises:
        FusionError: the model is no plain LLaVA, the window does not divide the grid, or a warm start does not fit.
        CheckpointError: the adapter file does not fit.
        KernelError: Triton kernels were asked for and cannot run here; the model is then as it was.
    """
    adapter = load_adapter(init) if init not in ("pool", "random") else None
    fusion = {"fusion_layers": fusion_layers, **_window_fields(window)}
    if adapter is not None:
        fusion |= adapter.config_values(model.config)
    config = _stf_config(model, fusion="stf", **fusion)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = LlavaStfProjector(config)
    if adapter is not None:
        adapter.load_into(projector)
    elif init == "pool":
        init_from_pooling(projector, model.model.multi_modal_projector)
    return _replace_parts(model, processor, config, projector, kernels)


def apply_pooling(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor | None = None,
    *,
    window: int | Sequence[int] = 2,
    kernels: Literal["auto", "triton", "torch"] = "auto",
) -> LlavaStfForConditionalGeneration:
    """Make a loaded LLaVA average its projected patches over each window, in place: the baseline of every comparison.

    Keeps the model's own projector and adds no parameter. Undone by `remove_stf`. Arguments and errors as `apply_stf`.
    """
    config = _stf_config(model, fusion="pool", **_window_fields(window))
    projector = PooledProjector(config)
    projector.load_state_dict(model.model.multi_modal_projector.state_dict())
    return _replace_parts(model, processor, config, projector, kernels)


def apply_untrained(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor | None, like: LlavaStfConfig
) -> LlavaStfForConditionalGeneration:
    """Give a loaded LLaVA a projector of another model's kind and widths, for weights that are loaded next.

    In place; undone by `remove_stf`. Raises `FusionError` if the model is no plain LLaVA or the fusion does not fit.
    """
    fields = ("fusion", "fusion_layers", *WINDOW_FIELDS, "fusion_block_hidden_size", "fusion_hidden_size")
    config = _stf_config(model, **{name: getattr(like, name) for name in fields})
    return _replace_parts(model, processor, config, build_projector(config), "auto")


def former_projector(model: LlavaForConditionalGeneration) -> nn.Module:
    """The projector that a model had before `apply_stf` or `apply_pooling`. Raises `FusionError` as `remove_stf`."""
    return _original(model).projector


def remove_stf(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor | None = None
) -> LlavaForConditionalGeneration:
    """Undo `apply_stf` or `apply_pooling` in place; afterwards the model's outputs are bit-identical to before.

    Raises `FusionError` if the model was not patched in this process.
    """
    original = _original(model)
    run_all_blocks(model.model.vision_tower)
    reference = next(model.model.multi_modal_projector.parameters())
    model.model.multi_modal_projector = original.projector.to(reference.device, reference.dtype)
    model.model.config = model.config = original.config
    model.__class__, model.model.__class__ = LlavaForConditionalGeneration, LlavaModel
    del model._before_stf
    if processor is not None:
        processor.__class__ = LlavaProcessor
        del processor.fusion_window
    return model


def _original(model: LlavaForConditionalGeneration) -> _Original:
    original = vars(model).get("_before_stf")
    if original is None:
        raise FusionError("Expected a model that apply_stf has patched, found one that was loaded or built as it is.")
    return original


def _window_fields(window: int | Sequence[int]) -> dict[str, Any]:
    if not isinstance(window, Sequence):
        return {"fusion_window": window}
    if not window:
        raise FusionError("Expected at least one window, found an empty list.")
    return dict(zip(WINDOW_FIELDS, (window[0], list(dict.fromkeys(window)), SHARED_WEIGHT_WINDOW), strict=True))


def _stf_config(model: LlavaForConditionalGeneration, **fusion: Any) -> LlavaStfConfig:
    """The model's config as a `LlavaStfConfig`, sharing its vision and text configs."""
    if type(model) is not LlavaForConditionalGeneration:
        raise FusionError(
            f"Expected a plain LlavaForConditionalGeneration, found {type(model).__name__}; patch before wrapping "
            "(PEFT, compile), and an already fused model only after remove_stf."
        )
    config = model.config
    shared = [config.vision_config, config.text_config]
    attention = [part._attn_implementation_internal for part in shared]
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if config.vision_feature_select_strategy == "full" and special_tokens(model.model.vision_tower) == 0:
        values["vision_feature_select_strategy"] = "default"  # all of such a tower's states are patches
    try:
        stf_config = LlavaStfConfig(**values | fusion)
    finally:
        # A new config resets the attention implementation of the parts it is given.
        for part, implementation in zip(shared, attention, strict=True):
            part._attn_implementation_internal = implementation
    stf_config.architectures = [LlavaStfForConditionalGeneration.__name__]
    stf_config._attn_implementation_internal = config._attn_implementation_internal
    if "quantization_config" in vars(config):
        stf_config.quantization_config = config.quantization_config
    return stf_config


def _replace_parts(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor | None,
    config: LlavaStfConfig,
    projector: nn.Module,
    kernels: str,
) -> LlavaStfForConditionalGeneration:
    former = model.model.multi_modal_projector
    weight = former.linear_1.weight
    projector.to(weight.device, weight.dtype).train(former.training)
    use_kernels(projector, kernels)
    model._before_stf = _Original(model.config, former)
    model.model.multi_modal_projector = projector
    model.model.config = model.config = config
    model.__class__, model.model.__class__ = LlavaStfForConditionalGeneration, LlavaStfModel
    skip_unused_blocks(model.model.vision_tower, config.fusion_states)
    if processor is not None:
        processor.__class__ = LlavaStfProcessor
        processor.fusion_window = config.fusion_window
        if processor.patch_size is None:
            processor.patch_size = config.vision_config.patch_size
    return model
