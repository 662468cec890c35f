"""A change made to a model and its processor, and put back: the one place where either is done.

What is put back is everything: class, config, projector and hooks of the model, class and attributes of the processor.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, ProcessorMixin

from llava_stf.errors import FusionError
from llava_stf.models.llava_stf.vocabulary import processor_beside, remember_tokenizer
from llava_stf.models.vision.states import run_all_blocks, skip_unused_blocks, towers_of
from llava_stf.reduction.method import Change

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


def make_change(model: LlavaForConditionalGeneration, processor: LlavaProcessor | None, change: Change) -> Any:
    """Make the change in place; nothing in here can fail once the tower is found to have blocks."""
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


def undo_change(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor | None
) -> LlavaForConditionalGeneration:
    """Put back what `make_change` changed; arguments and errors as in `remove_reduction`."""
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


def former_projector(model: LlavaForConditionalGeneration) -> nn.Module:
    """The projector that a model had before STF or pooling was applied to it.

    Raises:
        FusionError: neither was, in this process.
    """
    projector = _former(model).projector
    if projector is None:
        raise FusionError("Expected a model with a fused projector, found one that was reduced without one.")
    return projector


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
