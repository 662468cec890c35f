"""Methods without weights of their own, and the classes that a model and its processor have while one is applied."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import ImageSizes, VisionTokens, patch_grid
from llava_stf.models.fusion.tiles import has_tiles, refuse_tiles
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
from llava_stf.models.registry import family_of
from llava_stf.models.vision.layers import selected_layers
from llava_stf.models.vision.states import select_patch_states
from llava_stf.models.vision.towers import special_tokens_of
from llava_stf.reduction.config import derive_config
from llava_stf.reduction.method import Change, Method, Reduction, refuse_to_save
from llava_stf.reduction.tiled import (
    ReducedLlavaNextConfig,
    ReducedLlavaNextForConditionalGeneration,
    ReducedLlavaNextModel,
    ReducedLlavaNextProcessor,
)


class TrainingFreeMethod(Method):
    """A method without weights: it takes a plain LLaVA as it is, at any budget.

    Attributes:
        tiles: how it is published for a LLaVA-NeXT: for `"each"` of the tiles on its own; for their tokens `"joined"`,
            of which its `choose_joined(tokens, count)` leaves a share; or `None`, not at all.
    """

    tiles: ClassVar[Literal["each", "joined"] | None] = None

    def check(self, config: LlavaConfig, patches: int, vision_tokens: int) -> None:
        """Check that images are single squares and hidden states those of a LLaVA-1.5.

        Raises:
            FusionError: they are not.
        """
        if not (self.tiles and config.model_type == "llava_next"):
            refuse_tiles(config, f"'{self.name}'")
        layer = selected_layers(config)
        if not isinstance(layer, int):
            raise FusionError(
                f"'{self.name}' needs one hidden state, as in LLaVA-1.5; found vision_feature_layer {layer}."
            )
        before = 1 if config.vision_feature_select_strategy == "default" else 0
        special = special_tokens_of(config.vision_config)
        if special != before:
            raise FusionError(
                f"'{self.name}' takes the patches to follow {before} other tokens in the tower's hidden states, as "
                f"vision_feature_select_strategy '{config.vision_feature_select_strategy}' says; in a "
                f"{config.vision_config.model_type} they follow {special}. Fuse tokens instead (apply_stf, "
                "apply_pooling), which counts them."
            )

    def plan(self, model: LlavaForConditionalGeneration, vision_tokens: int, seed: int) -> Change:
        """As `Method.plan`; every method without weights makes the same classes of a model."""
        family_of(model)
        config = model.config
        reduction = Reduction(self, patch_grid(config) ** 2, vision_tokens, seed)
        common: dict[str, Any] = {
            "tower_layers": [config.vision_feature_layer],
            "reduction": reduction,
            "hooks": self.hooks,
        }
        tokens = reduction.prompt_tokens
        if has_tiles(config):
            joined = self.tiles == "joined"
            return Change(
                model_class=ReducedLlavaNextForConditionalGeneration,
                inner_class=ReducedLlavaNextModel,
                config=derive_config(config, ReducedLlavaNextConfig, prompt_tokens=tokens, joined=joined),
                processor_class=ReducedLlavaNextProcessor,
                processor_fields={"image_tokens": tokens, "joined": joined},
                **common,
            )
        return Change(
            model_class=ReducedLlavaForConditionalGeneration,
            inner_class=self.model_class(),
            config=derive_config(config, ReducedLlavaConfig, prompt_tokens=tokens),
            processor_class=ReducedProcessor,
            processor_fields={"image_tokens": tokens},
            **common,
        )

    def model_class(self) -> type[ReducedLlavaModel]:
        """The class that the inner model gets."""
        return ReducedLlavaModel

    def hooks(self, model: LlavaForConditionalGeneration) -> list[RemovableHandle]:
        """Forward hooks that the method puts on the model."""
        return []

    @abstractmethod
    def image_tokens(self, model: ReducedLlavaModel, pixel_values: Tensor) -> Tensor:
        """What takes the image's place in the prompt: pixel_values [B, 3, height, width] -> [B, prompt tokens, H]."""


class ReducedLlavaConfig(LlavaConfig):
    """A plain LLaVA's config that knows how many tokens an image takes in the prompt."""

    prompt_tokens: int = 0

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: VisionTokens = None) -> list[int]:
        """LLM tokens of each image, see `llava_stf.models.fusion.budget`."""
        if vision_tokens not in (None, self.prompt_tokens):
            raise FusionError(
                f"An image takes {self.prompt_tokens} tokens of this reduced model's prompt, and it cannot give "
                f"{vision_tokens}; call remove_reduction and apply it at another budget."
            )
        return [self.prompt_tokens] * len(image_sizes)


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

        Raises:
            FusionError: another layer, select strategy or image size than the config's is asked for.
        """
        config = self.config
        asked = (vision_feature_layer, vision_feature_select_strategy)
        own = (config.vision_feature_layer, config.vision_feature_select_strategy)
        if any(value not in (None, known) for value, known in zip(asked, own, strict=True)) or image_sizes is not None:
            raise FusionError("A reduced LLaVA takes the hidden state of its config and square images of one size.")
        method = self.reduction.method
        assert isinstance(method, TrainingFreeMethod)
        tokens = method.image_tokens(self, pixel_values)
        if method.attention_bias:
            self.reduction.encoded.tokens = tokens
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=list(tokens))

    def patch_states(self, pixel_values: Tensor) -> Tensor:
        """The selected hidden state of the tower, of the patches alone: [B, N, C]."""
        return select_patch_states(self.vision_tower, pixel_values, [self.config.vision_feature_layer])[0]


class ReducedLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """A plain LLaVA that a method without weights has been applied to. It generates as any other."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse, see `refuse_to_save`."""
        refuse_to_save(self.model.reduction.method)


class ReducedProcessor(LlavaStfProcessor):
    """Counts `image_tokens` placeholders for every image."""

    image_tokens: int

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each preprocessed image, whatever its size."""
        return super().num_image_tokens(image_sizes, self.image_tokens if vision_tokens is None else vision_tokens)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse, as the model does.

        Raises:
            FusionError: always.
        """
        raise FusionError("This processor counts for a reduced model; call remove_reduction before saving it.")
