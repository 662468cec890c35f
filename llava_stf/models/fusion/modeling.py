"""What every fused model does alike: image tokens enter the prompt without waiting for a GPU, and answers are text.

Both classes stand before those of transformers among the bases of a model.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast
from transformers.utils import ModelOutput, can_return_tuple

from llava_stf.errors import FusionError
from llava_stf.models.carries_code import CarriesCode
from llava_stf.models.fusion.budget import ImageSizes, budget_of_prompt, num_image_tokens
from llava_stf.models.llava_stf.vocabulary import tokenizer_beside, with_suppressed
from llava_stf_kernels import check_count, place_tokens

# What forward passes and outputs call the key-value cache; the other name is translated for callers until 5.40.
CACHE = "cache" if "cache" in inspect.signature(LlavaForConditionalGeneration.forward).parameters else "past_key_values"
# Since 5.24 outputs hold what `get_image_features` gave, and before that the image tokens alone.
_HOLDS_IMAGE_OUTPUTS = "image_outputs" in LlavaModelOutputWithPast.__dataclass_fields__
_Base: Any = LlavaForConditionalGeneration if TYPE_CHECKING else object


class FusedImages:
    """Of the inner model: places the tokens of `get_image_features` in the prompt."""

    if TYPE_CHECKING:
        config: Any
        multi_modal_projector: Any
        get_input_embeddings: Any

    def get_image_features(self, pixel_values: Tensor, **choices: Any) -> Any:
        """Fused image tokens for the LLM, in `pooler_output`: one [M, H] tensor per image."""
        raise NotImplementedError

    def check_choices(self, layers: int | list[int] | None, strategy: str | None) -> None:
        """Check that the hidden states asked for are those that the weights are made for.

        Raises:
            FusionError: they are not.
        """
        if layers not in (None, self.config.vision_feature_layer):
            raise FusionError(
                f"This model fuses the layers {self.config.vision_feature_layer}; it cannot take {layers}."
            )
        if strategy not in (None, "default"):
            raise FusionError(f"This model drops the class token; it has no select strategy '{strategy}'.")

    def sizes_of_images(self, pixel_values: Tensor, image_sizes: Any = None) -> ImageSizes:
        """Height and width of each image as `num_image_tokens` takes them.

        Args:
            pixel_values: of the images.
            image_sizes: what the processor gave under that name.

        Raises:
            PromptError: it gave none, or another number than there are images.
        """
        return [(pixel_values.shape[-2], pixel_values.shape[-1])] * len(pixel_values)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As that of the class in transformers, without waiting for a GPU when the image tokens enter the prompt.

        Images may come encoded in `mm_encoder_outputs`, as `generate` gives them since transformers 5.23 or so. A model
        for several windows takes the one whose tokens the prompt has placeholders for; counting them waits for a GPU.

        Raises:
            ValueError: the number of image tokens in `input_ids` [B, T] is not that of the image tokens; on a GPU that
                is a failed device assertion, while `generate` raises before it starts.
        """
        choices: dict[str, Any] = {
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "image_sizes": image_sizes,
        }
        kwargs["return_dict"] = True
        features = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        ambiguous = inputs_embeds is not None or (pixel_values is not None and features is not None)
        if input_ids is None or ambiguous or (pixel_values is None and features is None):
            return super().forward(  # type: ignore[misc]
                input_ids=input_ids, pixel_values=pixel_values, inputs_embeds=inputs_embeds, **choices, **kwargs
            )
        kwargs.pop("mm_encoder_outputs", None)
        embeddings = self.get_input_embeddings()(input_ids)
        image_token_mask = input_ids == self.config.image_token_id
        if features is None:
            assert pixel_values is not None  # without either, this is not reached
            sizes = self.sizes_of_images(pixel_values, image_sizes)
            vision_tokens = budget_of_prompt(self.config, image_token_mask, sizes)
            features = self.get_image_features(pixel_values, vision_tokens=vision_tokens, **choices)
        tokens = torch.cat(list(features.pooler_output)).to(embeddings.device, embeddings.dtype)
        embeddings = place_tokens(embeddings, tokens, image_token_mask, backend=self.multi_modal_projector.kernels)
        outputs = super().forward(inputs_embeds=embeddings, **kwargs)  # type: ignore[misc]
        if _HOLDS_IMAGE_OUTPUTS:
            outputs.image_outputs = features
        else:
            outputs.image_hidden_states = tokens
        return outputs


class FusedGeneration(CarriesCode, _Base):
    """Of the model with the head: `generate`, and what it needs."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, never emitting an id that is no text (see `suppressed_ids`).

        Raises:
            ValueError: the prompt has another number of placeholders than the images have tokens.
        """
        ids, pixel_values = kwargs.get("input_ids", args[0] if args else None), kwargs.get("pixel_values")
        if ids is not None and pixel_values is not None:
            # Counted on the host, before any work is queued that the count would have to wait for.
            image_token_mask = (ids == self.config.image_token_id).cpu()
            sizes = self.model.sizes_of_images(pixel_values, kwargs.get("image_sizes"))
            kwargs["vision_tokens"] = budget_of_prompt(self.config, image_token_mask, sizes)
            check_count(image_token_mask, sum(num_image_tokens(self.config, sizes, kwargs["vision_tokens"])))
        kwargs["suppress_tokens"] = with_suppressed(kwargs, self.generation_config, self.config, tokenizer_beside(self))
        return super().generate(*args, **kwargs)

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `PeftAdapterMixin.load_adapter`, which loses the magnitudes of a DoRA.

        Args:
            peft_model_id: folder or hub id of an adapter.
            *args: as there.
            **kwargs: as there.

        Returns:
            What transformers' own returns.

        Raises:
            FusionError: the adapter is a DoRA, which PEFT's own `PeftModel.from_pretrained` reads exactly.
        """
        config = kwargs.get("peft_config")
        if config is None and peft_model_id is not None:
            from peft import PeftConfig

            config = PeftConfig.from_pretrained(peft_model_id, **kwargs.get("adapter_kwargs") or {})
        if (config if isinstance(config, dict) else vars(config or object)).get("use_dora"):
            raise FusionError(
                f"load_adapter of transformers loses the magnitudes of a DoRA, and {peft_model_id or 'this adapter'} "
                "is one; read it with peft.PeftModel.from_pretrained(model, folder)."
            )
        return super().load_adapter(peft_model_id, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        vision_tokens: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As `GenerationMixin`'s. `vision_tokens` is for versions that encode images before the first step."""
        return super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)


def image_tokens_of(outputs: ModelOutput) -> Tensor:
    """The image tokens [R, H] that went into the prompt, all images in a row, from a forward pass with images."""
    if _HOLDS_IMAGE_OUTPUTS:
        return torch.cat(list(outputs.image_outputs.pooler_output))
    return outputs.image_hidden_states


def register_key_names(ours: str, stock: str) -> None:
    """Let files carry a LLaVA's public key names (`language_model.model.*`, `multi_modal_projector.*`, ...).

    transformers applies its renamings to its own classes only; without this a file written by one version would not be
    read by another.

    Args:
        ours: model type or class of this package.
        stock: that of transformers which it stands for.
    """
    mapping = get_checkpoint_conversion_mapping(stock)
    if mapping is not None:
        register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)
