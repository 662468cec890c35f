"""Apply a method to a loaded LLaVA in place, and undo it."""

from __future__ import annotations

from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel, LlavaProcessor

from llava_stf.errors import FusionError, nearest
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig, patch_grid
from llava_stf.models.llava_stf.modeling_llava_stf import run_all_blocks, skip_unused_blocks
from llava_stf.models.vision.towers import special_tokens_of
from llava_stf.reduction.catalogue import METHODS
from llava_stf.reduction.method import Method, Reduction
from llava_stf.reduction.model import ReducedLlavaForConditionalGeneration, ReducedProcessor, class_tokens


def find_method(name: str) -> Method:
    """The method of that name in `METHODS`. Raises `FusionError` with the nearest name where there is none."""
    if name not in METHODS:
        raise FusionError(f"Unknown method '{name}': {nearest(name, METHODS)}")
    return METHODS[name]


def check_reduction(config: LlavaConfig, method: str | Method, vision_tokens: int) -> Method:
    """The method, if a plain LLaVA of this config can be had with it at that budget; needs no weights.

    Raises `FusionError`: no such method, the config is not a plain LLaVA's, or the budget does not fit.
    """
    found = find_method(method) if isinstance(method, str) else method
    if isinstance(config, LlavaStfConfig):
        raise FusionError(f"'{found.name}' is for a plain LLaVA; found one that fuses tokens by '{config.fusion}'.")
    if not isinstance(config.vision_feature_layer, int):
        raise FusionError(
            f"'{found.name}' needs one tower state, as in LLaVA-1.5; found vision_feature_layer "
            f"{config.vision_feature_layer}."
        )
    before, special = class_tokens(config), special_tokens_of(config.vision_config)
    if special != before:
        raise FusionError(
            f"'{found.name}' takes the patches to follow {before} other tokens in the tower's states, as "
            f"vision_feature_select_strategy '{config.vision_feature_select_strategy}' says; in a "
            f"{config.vision_config.model_type} they follow {special}. Fuse tokens instead (apply_stf, apply_pooling), "
            "which counts them."
        )
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
        method: a name in `METHODS`, or a method with options of its own such as `FastV(full_layers=3)`.
        vision_tokens: the budget M per image, 1 to the number of patches; which of these, the method says.
        seed: of the method that draws at random.

    Returns:
        The same model. Undone by `remove_reduction`.

    Raises:
        FusionError: as `check_reduction`, or the model is no plain LLaVA; everything is then as it was.
    """
    if type(model) is not LlavaForConditionalGeneration:
        raise FusionError(
            f"Expected a plain LlavaForConditionalGeneration, found {type(model).__name__}; load it with "
            "vision_tokens='all', or call remove_reduction or remove_stf first."
        )
    found = check_reduction(model.config, method, vision_tokens)
    reduction = Reduction(found, patch_grid(model.config) ** 2, vision_tokens, seed)
    model.__class__, model.model.__class__ = ReducedLlavaForConditionalGeneration, found.model_class()
    model.model.reduction = reduction
    skip_unused_blocks(model.model.vision_tower, [model.config.vision_feature_layer])
    model._reduction_hooks = found.hooks(model)
    if processor is not None:
        processor._before_reduction = type(processor)
        processor.__class__ = ReducedProcessor
        processor.image_tokens = reduction.prompt_tokens
    return model


def remove_reduction(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor | None = None
) -> LlavaForConditionalGeneration:
    """Undo `apply_reduction` in place; afterwards the model's outputs are bit-identical to before.

    Raises `FusionError` if the model is not reduced.
    """
    if not isinstance(model, ReducedLlavaForConditionalGeneration):
        raise FusionError("Expected a model that apply_reduction has changed, found one that is as it was loaded.")
    for hook in model._reduction_hooks:
        hook.remove()
    run_all_blocks(model.model.vision_tower)
    del model._reduction_hooks, model.model.reduction
    model.__class__, model.model.__class__ = LlavaForConditionalGeneration, LlavaModel
    if processor is not None:
        processor.__class__ = processor._before_reduction
        del processor._before_reduction, processor.image_tokens
    return model
