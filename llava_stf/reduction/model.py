"""The classes that a reduced model and its processor have, between `apply_reduction` and `remove_reduction`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.errors import FusionError
from llava_stf.models.llava_stf.modeling_llava_stf import select_states
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
from llava_stf.reduction.method import Reduction


def class_tokens(config: LlavaConfig) -> int:
    """Tokens in front of the patches that a plain LLaVA of this config drops: 1, or 0 without a class token."""
    return 1 if config.vision_feature_select_strategy == "default" else 0


class ReducedLlavaModel(LlavaModel):
    """`LlavaModel` whose images give the tokens that `reduction.method` leaves."""

    reduction: Reduction

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Image tokens for the LLM, in `pooler_output`: one tensor [prompt tokens, H] per image [3, height, width].

        Raises `FusionError` where another layer, select strategy or image size than the config's is asked for.
        """
        config = self.config
        asked = (vision_feature_layer, vision_feature_select_strategy)
        own = (config.vision_feature_layer, config.vision_feature_select_strategy)
        if any(value not in (None, known) for value, known in zip(asked, own, strict=True)) or image_sizes is not None:
            raise FusionError("A reduced LLaVA takes the tower state of its config and square images of one size.")
        tokens = self.reduction.method.image_tokens(self, pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=list(tokens))

    def patch_states(self, pixel_values: Tensor) -> Tensor:
        """The selected state of the tower, of the patches alone: [B, N, C]."""
        (state,) = select_states(self.vision_tower, pixel_values, [self.config.vision_feature_layer])
        return state[:, class_tokens(self.config) :]


class ReducedLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """A plain LLaVA that a method of `llava_stf.reduction` has been applied to. It generates as any other."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raises `FusionError`: a method has no weights, and a checkpoint has no place for it."""
        raise FusionError(
            f"This model is reduced by '{self.model.reduction.method.name}', which no checkpoint can hold; call "
            "remove_reduction, save, and apply it again after loading."
        )


class ReducedProcessor(LlavaStfProcessor):
    """Counts `image_tokens` placeholders for every image."""

    fusion_window = 1
    image_tokens: int

    def tokens_per_image(self, height: int, width: int) -> int:
        """LLM tokens of one preprocessed image, whatever its size."""
        return self.image_tokens

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raises `FusionError`, as the model does."""
        raise FusionError("This processor counts for a reduced model; call remove_reduction before saving it.")
