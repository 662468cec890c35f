"""Apply a method to a loaded LLaVA in place, and undo it: one pair for STF, pooling and every other method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from llava_stf.errors import FusionError, nearest
from llava_stf.models.fusion.budget import patch_grid
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.llava_stf.modeling_llava_stf import LlavaStfForConditionalGeneration
from llava_stf.models.registry import family_of
from llava_stf.reduction.catalogue import METHODS
from llava_stf.reduction.change import make_change, undo_change
from llava_stf.reduction.fusion import FusingMethod, untrained
from llava_stf.reduction.method import Method
from llava_stf.reduction.options import checked_options, checked_seed
from llava_stf.reduction.pool import Pool
from llava_stf.reduction.stf import Stf


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
    if not isinstance(found, Method):
        raise FusionError(f"A model is reduced by one method, given by its name or as a Method; found {method!r}.")
    found = checked_options(found)
    if isinstance(config, FusionConfig):
        raise FusionError(f"'{found.name}' is for a plain LLaVA; found one that fuses tokens by '{config.fusion}'.")
    patches = patch_grid(config) ** 2
    if type(vision_tokens) is not int or not 1 <= vision_tokens <= patches:
        raise FusionError(f"vision_tokens must be 1 to the image's {patches} patches, found {vision_tokens!r}.")
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
        FusionError: as `check_reduction`, the seed is none, or the model is no plain LLaVA; everything is then as it
            was.
    """
    family_of(model)
    found = check_reduction(model.config, method, vision_tokens)
    return make_change(model, processor, found.plan(model, vision_tokens, checked_seed(seed)))


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
            does not divide the grid, a warm start does not fit, or an option has no such value; everything is then as
            it was.
        CheckpointError: the adapter file does not fit.
        KernelError: Triton kernels were asked for and cannot run here; the model is then as it was.
    """
    method = Stf(fusion_layers=fusion_layers, init=init, kernels=kernels, pool_frames=pool_frames)
    return make_change(model, processor, method.fuse(model, window, checked_seed(seed)))


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
    return make_change(model, processor, Pool(kernels=kernels, pool_frames=pool_frames).fuse(model, window, seed=0))


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
    return make_change(model, processor, found.fuse(model, window, checked_seed(seed)))


def apply_untrained(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor | None, like: FusionConfig
) -> LlavaStfForConditionalGeneration:
    """Give a loaded LLaVA a projector of another model's kind and widths, for weights that are loaded next.

    In place; undone by `remove_stf`.

    Raises:
        FusionError: as `apply_stf`.
    """
    return make_change(model, processor, untrained(model, like))


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
    return undo_change(model, processor)


remove_stf = remove_reduction
