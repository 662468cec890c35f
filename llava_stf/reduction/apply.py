"""Apply a method to a loaded LLaVA in place, and undo it: one pair for STF, pooling and every other method.

What is undone is everything: class, config, projector and hooks of the model, class and attributes of the processor.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, ProcessorMixin

from llava_stf.errors import FusionError, nearest
from llava_stf.models.fusion.budget import patch_grid
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.llava_stf.modeling_llava_stf import LlavaStfForConditionalGeneration
from llava_stf.models.llava_stf.vocabulary import processor_beside, remember_tokenizer
from llava_stf.models.registry import family_of
from llava_stf.models.vision.states import run_all_blocks, skip_unused_blocks, towers_of
from llava_stf.reduction.catalogue import METHODS
from llava_stf.reduction.fusion import FusingMethod, untrained
from llava_stf.reduction.method import Change, Method
from llava_stf.reduction.options import check_options
from llava_stf.reduction.pool import Pool
from llava_stf.reduction.stf import Stf

# Under this name a changed model and its processor keep what `restore` puts back.
_FORMER = "_before_reduction"


@dataclass
class _FormerModel:
    """A plain object, so that the former projector is no submodule of the model."""

    change: str  # tells which processor was changed together with the model, copies of both included
    classes: tuple[type, type]
    config: LlavaConfig
    projector: nn.Module | None
    hooks: list[RemovableHandle]
    processor: LlavaProcessor | None
    remembered: ProcessorMixin | None  # the processor beside the model, whose tokenizer it knows


@dataclass
class _FormerProcessor:
    change: str
    kind: type
    changed: tuple[str, ...]  # names of attributes
    attributes: dict[str, Any]  # those of the changed that were there


def find_method(name: str) -> Method:
    """The method of that name in `METHODS`.

    Raises:
        FusionError: there is none, with the nearest name.
    """
    if name not in METHODS:
        raise FusionError(f"Unknown method '{name}': {nearest(name, METHODS)}")
    return METHODS[name]


def check_reduction(config: LlavaConfig, method: str | Method, vision_tokens: int) -> Method:
    """The method, if a plain LLaVA of this config can be had with it at that budget; needs no weights.

    Raises:
        FusionError: no such method, no such value of its options, the config is not a plain LLaVA's, or the budget
            does not fit.
    """
    found = find_method(method) if isinstance(method, str) else method
    check_options(found)
    if isinstance(config, FusionConfig):
        raise FusionError(f"'{found.name}' is for a plain LLaVA; found one that fuses tokens by '{config.fusion}'.")
    patches = patch_grid(config) ** 2
    if not 1 <= vision_tokens <= patches:
        raise FusionError(f"vision_tokens must be 1 to the image's {patches} patches, found {vision_tokens}.")
    found.check(config, patches, vision_tokens)
    return found


def apply_reduction(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor | None,
    method: str | Method,
    *,
    vision_tokens: int,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """Make a plain LLaVA show its LLM `vision_tokens` tokens of every image, in place.

    Args:
        model: a plain `LlavaForConditionalGeneration`, as `load_model(..., vision_tokens="all")` gives it.
        processor: its processor, changed in place to count the placeholders and to tokenise as `LlavaStfProcessor`;
            `None` leaves both to the caller.
        method: a name in `METHODS` for the published method, or one with options such as `FastV(full_layers=3)` or
            `ToMe(order="raster")`.
        vision_tokens: M, what is kept of each image, 1 to the number of patches; which of these, the method says. The
            mean over the LLM's layers, by which published tables count, is `Method.mean_tokens`: more for FastV.
        seed: of the method that draws at random.

    Returns:
        The same model. Undone by `remove_reduction`.

    Raises:
        FusionError: as `check_reduction`, or the model is no plain LLaVA; everything is then as it was.
    """
    family_of(model)
    found = check_reduction(model.config, method, vision_tokens)
    return _apply(model, processor, found.plan(model, vision_tokens, seed))


def apply_stf(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor | None = None,
    *,
    window: int | Sequence[int] = 2,
    fusion_layers: list[int] | None = None,
    init: Literal["pool", "random"] | str | Path = "pool",
    seed: int = 0,
    kernels: Literal["auto", "triton", "torch"] = "auto",
    pool_frames: bool = True,
) -> LlavaStfForConditionalGeneration:
    """Make a loaded LLaVA fuse each `window` x `window` patches into one vision token, in place.

    Args:
        model: a plain `LlavaForConditionalGeneration`; its LLM may be quantized.
        processor: its processor, changed in place to count and tokenise for the fused model.
        window: side k of a window; must divide the patch grid (24 at 336 px). An adapter file brings its own. A list
            makes a model for each of its windows with one set of weights, those for 2x2; the first is the default.
        fusion_layers: hidden states that MBTF joins, in channel order; default by the tower's depth.
        init: `"pool"` starts as the exact mean of the base projector's outputs over each window, `"random"` with
            PyTorch's Linear initialisation as in the paper's first stage, a path loads the adapter file (safetensors
            or `mm_projector.bin`) written there.
        seed: of the random weights.
        kernels: what the projector runs on, see `use_kernels`.
        pool_frames: whether the frames of a video keep the pooling that LLaVA-OneVision and LLaVA-NeXT-Video have for
            them, beside the windows; without it windows stand in its place.

    Returns:
        The same object, now a `LlavaStfForConditionalGeneration`. Undone by `remove_stf`.

    Raises:
        FusionError: the model is no plain LLaVA, its projector is quantized, wrapped, sharded or offloaded, the window
            does not divide the grid, or a warm start does not fit; everything is then as it was.
        CheckpointError: the adapter file does not fit.
        KernelError: Triton kernels were asked for and cannot run here; the model is then as it was.
    """
    method = Stf(fusion_layers=fusion_layers, init=init, kernels=kernels, pool_frames=pool_frames)
    return _apply(model, processor, method.fuse(model, window, seed))


def apply_pooling(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor | None = None,
    *,
    window: int | Sequence[int] = 2,
    kernels: Literal["auto", "triton", "torch"] = "auto",
    pool_frames: bool = True,
) -> LlavaStfForConditionalGeneration:
    """Make a loaded LLaVA average its projected patches over each window, in place: the baseline of every comparison.

    Keeps the weights of the model's own projector and adds no parameter.

    Args:
        model: as in `apply_stf`.
        processor: as in `apply_stf`.
        window: as in `apply_stf`.
        kernels: as in `apply_stf`.
        pool_frames: as in `apply_stf`.

    Returns:
        The same object. Undone by `remove_stf`.

    Raises:
        FusionError: as `apply_stf`.
        KernelError: as `apply_stf`.
    """
    return _apply(model, processor, Pool(kernels=kernels, pool_frames=pool_frames).fuse(model, window, seed=0))


def apply_fusing(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor | None,
    method: str,
    *,
    window: int | Sequence[int],
    seed: int = 0,
) -> LlavaStfForConditionalGeneration:
    """Give a loaded LLaVA the projector of a method with weights, by its name and with its defaults, in place.

    Args:
        model: as in `apply_stf`.
        processor: as in `apply_stf`.
        method: of those in `METHODS` that fuse: stf, pool, m3, tokenpacker or mqt.
        window: as in `apply_stf`.
        seed: of random weights.

    Returns:
        The same object. Undone by `remove_stf`.

    Raises:
        FusionError: as `apply_stf`, or the method has no projector of its own.
    """
    found = find_method(method)
    if not isinstance(found, FusingMethod):
        raise FusionError(f"'{method}' has no projector that could be trained.")
    return _apply(model, processor, found.fuse(model, window, seed))


def apply_untrained(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor | None, like: FusionConfig
) -> LlavaStfForConditionalGeneration:
    """Give a loaded LLaVA a projector of another model's kind and widths, for weights that are loaded next.

    In place; undone by `remove_stf`.

    Raises:
        FusionError: as `apply_stf`.
    """
    return _apply(model, processor, untrained(model, like))


def former_projector(model: LlavaForConditionalGeneration) -> nn.Module:
    """The projector that a model had before STF or pooling was applied to it.

    Raises:
        FusionError: neither was, in this process.
    """
    projector = _former(model).projector
    if projector is None:
        raise FusionError("Expected a model with a fused projector, found one that was reduced without one.")
    return projector


def remove_reduction(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor | None = None
) -> LlavaForConditionalGeneration:
    """Undo `apply_stf`, `apply_pooling` or `apply_reduction` in place; `remove_stf` is another name of it.

    Args:
        model: a changed model.
        processor: the one that was changed with it, or its copy beside a copy of the model. It is restored with the
            model whether it is given or not.

    Returns:
        The same model. It and its processor are what they were: ids, logits and answers are bit-identical to before.

    Raises:
        FusionError: the model was not changed in this process, or the processor was not changed together with it, or
            has been changed again since; everything is then as it was.
    """
    former = _former(model)
    target = former.processor if processor is None else processor
    if target is not None:
        recorded = vars(target).get(_FORMER)
        if recorded is None or recorded.change != former.change:
            raise FusionError(
                "Expected the processor that was changed together with this model, found another, or one that has been "
                "changed again since; pass the right one, or none where the model was changed without."
            )
        _restore_processor(target, recorded)
    for hook in former.hooks:
        hook.remove()
    inner = model.model
    for tower in towers_of(inner):
        run_all_blocks(tower)
    if former.projector is not None:
        current = next(inner.multi_modal_projector.parameters())
        if current.device.type != "meta" and current.is_floating_point():
            former.projector.to(current.device, current.dtype)
        inner.multi_modal_projector = former.projector
    vars(inner).pop("reduction", None)
    inner.config = model.config = former.config
    _become(model, former.classes[0])
    _become(inner, former.classes[1])
    remember_tokenizer(model, former.remembered)
    delattr(model, _FORMER)
    return model


remove_stf = remove_reduction


def _apply(model: LlavaForConditionalGeneration, processor: LlavaProcessor | None, change: Change) -> Any:
    """Make the change; nothing in here can fail once the tower is found to have blocks."""
    inner, key = model.model, uuid.uuid4().hex
    for tower in towers_of(inner):
        skip_unused_blocks(tower, change.tower_layers)
    former = _FormerModel(key, (type(model), type(inner)), model.config, None, [], processor, processor_beside(model))
    if change.projector is not None:
        former.projector, inner.multi_modal_projector = inner.multi_modal_projector, change.projector
    if change.reduction is not None:
        inner.reduction = change.reduction
    inner.config = model.config = change.config
    _become(model, change.model_class)
    _become(inner, change.inner_class)
    former.hooks = change.hooks(model)
    setattr(model, _FORMER, former)
    if processor is not None:
        _change_processor(processor, change, key)
        remember_tokenizer(model, processor)
    return model


def _change_processor(processor: LlavaProcessor, change: Change, key: str) -> None:
    # What would stand before a method of the new class, such as the number that LLaVA-OneVision calls num_image_tokens.
    shadows = [name for name in vars(processor) if callable(getattr(change.processor_class, name, None))]
    names = (*change.processor_fields, *shadows, _FORMER)
    before = {name: vars(processor)[name] for name in names if name in vars(processor)}
    for name in shadows:
        vars(processor).pop(name)
    record = _FormerProcessor(key, type(processor), names, before)
    _become(processor, change.processor_class)
    vars(processor).update(change.processor_fields, **{_FORMER: record})


def _restore_processor(processor: LlavaProcessor, former: _FormerProcessor) -> None:
    for name in former.changed:
        vars(processor).pop(name, None)
    vars(processor).update(former.attributes)
    _become(processor, former.kind)


def _former(model: nn.Module) -> _FormerModel:
    former = vars(model).get(_FORMER)
    if former is None:
        raise FusionError(
            "Expected a model that apply_stf, apply_pooling or apply_reduction has changed in this process, found one "
            "that is as it was loaded or built."
        )
    return former


def _become(target: object, kind: type) -> None:
    """Give an object another class of the same layout, in the one place where that is done.

    A changed model must be exactly what its class loads and saves, a LLaVA-STF for one: `save_pretrained`, the Auto
    classes, Trainer and PEFT ask for the class, and the object is the user's own, held elsewhere too. A wrapper would
    be neither, and a new model beside the old one would need its weights twice.
    """
    target.__class__ = kind
