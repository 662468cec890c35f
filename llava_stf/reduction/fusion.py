"""Methods with a projector of their own: what they make of a model is an ordinary LLaVA-STF, which can be saved."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import resolve_window
from llava_stf.models.fusion.build import build_projector, use_kernels
from llava_stf.models.fusion.config import FusionConfig, VideoFusionConfig
from llava_stf.models.fusion.videos import frame_fields
from llava_stf.models.fusion.weights import plain_weight
from llava_stf.models.registry import family_of
from llava_stf.models.vision.layers import select_strategy
from llava_stf.models.vision.states import towers_of
from llava_stf.models.vision.towers import special_tokens
from llava_stf.reduction.config import derive_config
from llava_stf.reduction.method import Change, Method

WINDOW_FIELDS = ("fusion_window", "fusion_windows", "fusion_weight_window")
# The paper's window: whatever other windows are served, the number of weights stays that of the published model.
SHARED_WEIGHT_WINDOW = 2


class FusingMethod(Method):
    """A method that fuses windows of patches by a projector of its own."""

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Check that a window gives that many tokens.

        Raises:
            FusionError: none does.
        """
        resolve_window(config, vision_tokens)

    def plan(self, model: LlavaForConditionalGeneration, vision_tokens: int, seed: int) -> Change:
        """As `Method.plan`, for the one window that gives that many tokens."""
        return self.fuse(model, resolve_window(model.config, vision_tokens), seed)

    @abstractmethod
    def fuse(self, model: LlavaForConditionalGeneration, window: int | Sequence[int], seed: int) -> Change:
        """What this method makes of a plain model in windows of that side, or in each of several, the default first.

        Args:
            model: the plain model.
            window: one side, for weights of that window, or several for those of 2x2.
            seed: of random weights.

        Raises:
            FusionError: the model cannot be changed, or a window does not divide its grid.
        """


def window_fields(window: int | Sequence[int]) -> dict[str, Any]:
    """The fields of a config for one window, or for several with one set of weights.

    Raises:
        FusionError: the list is empty.
    """
    if not isinstance(window, Sequence):
        return {"fusion_window": window}
    if not window:
        raise FusionError("Expected at least one window, found an empty list.")
    return dict(zip(WINDOW_FIELDS, (window[0], list(dict.fromkeys(window)), SHARED_WEIGHT_WINDOW), strict=True))


def pooling_fields(model: LlavaForConditionalGeneration, pool_frames: bool) -> dict[str, Any]:
    """The field of a config by which windows stand in place of a class's own pooling of frames, not beside it.

    Raises:
        FusionError: the class has none.
    """
    if pool_frames:
        return {}
    if not issubclass(family_of(model).config, VideoFusionConfig):
        raise FusionError(
            "pool_frames=False is for LLaVA-OneVision and LLaVA-NeXT-Video, which pool the frames of a video; a "
            f"{model.config.model_type} does not."
        )
    return {"fusion_pool_frames": False}


def fused_config(model: LlavaForConditionalGeneration, **fields: Any) -> FusionConfig:
    """The config that a plain model has once it fuses tokens.

    Raises:
        FusionError: the model is none that can be changed, its projector is not whole, or the fields do not fit.
    """
    family = family_of(model)
    for name in ("linear_1", "linear_2"):
        plain_weight(getattr(model.model.multi_modal_projector, name), f"multi_modal_projector.{name}")
    if select_strategy(model.config) == "full" and special_tokens(towers_of(model.model)[0]) == 0:
        fields["vision_feature_select_strategy"] = "default"  # all of such a tower's states are patches
    config = derive_config(model.config, family.config, **fields)
    config.architectures = [family.model.__name__]
    return config


def fusing_change(
    model: LlavaForConditionalGeneration, config: FusionConfig, projector: nn.Module, kernels: str
) -> Change:
    """The change to a LLaVA-STF with this projector, which is brought to where the former one is.

    Raises:
        KernelError: Triton kernels were asked for and cannot run here.
    """
    family, former = family_of(model), model.model.multi_modal_projector
    weight = former.linear_1.weight
    projector.to(weight.device, weight.dtype).train(former.training)
    use_kernels(projector, kernels)
    if "_hf_hook" in vars(former):  # accelerate's, that brings the tower's states to the projector's device
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(projector, copy.copy(former._hf_hook))
    fields: dict[str, Any] = {"fusion_window": config.fusion_window, "patch_size": config.vision_config.patch_size}
    fields |= frame_fields(config)
    return Change(
        model_class=family.model,
        inner_class=family.inner,
        config=config,
        tower_layers=config.fusion_states,
        processor_class=family.processor,
        processor_fields=fields,
        projector=projector,
    )


def untrained(model: LlavaForConditionalGeneration, like: FusionConfig) -> Change:
    """The change to a LLaVA-STF of another model's kind and widths, for weights that are loaded next.

    Raises:
        FusionError: as `fused_config`.
    """
    fields = ("fusion", "fusion_layers", *WINDOW_FIELDS, "fusion_block_hidden_size", "fusion_hidden_size")
    names = (*fields, "fusion_pool_frames") if isinstance(like, VideoFusionConfig) else fields
    config = fused_config(model, **{name: getattr(like, name) for name in names})
    return fusing_change(model, config, build_projector(config), "auto")
