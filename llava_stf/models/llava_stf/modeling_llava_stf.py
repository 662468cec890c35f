"""LLaVA-STF as a Hugging Face model: `LlavaForConditionalGeneration` with another projector and a shorter tower run."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast
from transformers.utils import ModelOutput, can_return_tuple

from llava_stf.errors import FusionError
from llava_stf.models.carries_code import CarriesCode
from llava_stf.models.fusion.budget import VisionTokens, budget_of_prompt, num_image_tokens, resolve_window
from llava_stf.models.fusion.build import build_projector
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.vocabulary import tokenizer_beside, with_suppressed
from llava_stf.models.vision.states import select_patch_states, skip_unused_blocks
from llava_stf_kernels import check_count, place_tokens

# What forward passes and outputs call the key-value cache; the other name is translated for callers until 5.40.
CACHE = "cache" if "cache" in inspect.signature(LlavaForConditionalGeneration.forward).parameters else "past_key_values"
# Since 5.24 outputs hold what `get_image_features` gave, and before that the image tokens alone.
_HOLDS_IMAGE_OUTPUTS = "image_outputs" in LlavaModelOutputWithPast.__dataclass_fields__


class LlavaStfModel(LlavaModel):
    """`LlavaModel` whose projector fuses tokens and whose tower runs only as deep as the fusion layers reach."""

    config_class = LlavaStfConfig
    config: LlavaStfConfig

    def __init__(self, config: LlavaStfConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = build_projector(config)
        skip_unused_blocks(self.vision_tower, config.fusion_states)
        self.post_init()

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        return_dict: bool | None = None,
        vision_tokens: VisionTokens = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Fused image tokens for the LLM, in `pooler_output`: one [M, H] tensor per image.

        `pixel_values` is [B, 3, height, width] of the tower's image size. `vision_tokens` is M, by default the config's
        `image_seq_length`; another count than the model was made for raises `FusionError`. The fusion layers are a
        matter of the weights, so asking for other layers or another select strategy than the config's does, too.
        """
        config = self.config
        if vision_feature_layer not in (None, config.vision_feature_layer):
            raise FusionError(
                f"This model fuses the layers {config.vision_feature_layer}; it cannot take {vision_feature_layer}."
            )
        if vision_feature_select_strategy not in (None, "default") or image_sizes is not None:
            raise FusionError("LLaVA-STF takes square images of one size and drops the class token.")
        window = resolve_window(config, vision_tokens)
        states = select_patch_states(self.vision_tower, pixel_values, config.fusion_states)
        features = self.multi_modal_projector(states, window)
        return BaseModelOutputWithPooling(last_hidden_state=states[0], pooler_output=list(features))

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
    ) -> LlavaModelOutputWithPast:
        """As `LlavaModel.forward`, without waiting for a GPU when the image tokens enter the prompt.

        Images may come encoded in `mm_encoder_outputs`, as `generate` gives them since transformers 5.23 or so. A model
        for several windows takes the one whose tokens the prompt has placeholders for; counting them waits for a GPU.

        Raises `ValueError` if the number of image tokens in `input_ids` [B, T] is not that of the image tokens; on a
        GPU that is a failed device assertion, while `generate` raises before it starts.
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
            return super().forward(
                input_ids=input_ids, pixel_values=pixel_values, inputs_embeds=inputs_embeds, **choices, **kwargs
            )
        kwargs.pop("mm_encoder_outputs", None)
        embeddings = self.get_input_embeddings()(input_ids)
        image_token_mask = input_ids == self.config.image_token_id
        if features is None:
            assert pixel_values is not None  # without either, this is not reached
            vision_tokens = budget_of_prompt(self.config, image_token_mask, sizes_of(pixel_values))
            features = self.get_image_features(pixel_values, vision_tokens=vision_tokens, **choices)
        tokens = torch.cat(list(features.pooler_output)).to(embeddings.device, embeddings.dtype)
        embeddings = place_tokens(embeddings, tokens, image_token_mask, backend=self.multi_modal_projector.kernels)
        outputs = super().forward(inputs_embeds=embeddings, **kwargs)
        if _HOLDS_IMAGE_OUTPUTS:
            outputs.image_outputs = features
        else:
            outputs.image_hidden_states = tokens
        return outputs


class LlavaStfForConditionalGeneration(CarriesCode, LlavaForConditionalGeneration):
    """LLaVA that sees (grid / k)**2 vision tokens per image: 144 where LLaVA-1.5 sees 576.

    Works wherever `LlavaForConditionalGeneration` does: `generate`, `Trainer`, PEFT, pipelines, quantization. Ids that
    are no text (see `llava_stf.models.llava_stf.vocabulary`) are never emitted by `generate`.
    """

    config_class = LlavaStfConfig
    config: LlavaStfConfig

    def __init__(self, config: LlavaStfConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = LlavaStfModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`, never emitting an id that is no text (see `suppressed_ids`).

        Raises `ValueError` if the prompt has another number of placeholders than the images have tokens.
        """
        ids, pixel_values = kwargs.get("input_ids", args[0] if args else None), kwargs.get("pixel_values")
        if ids is not None and pixel_values is not None:
            # Counted on the host, before any work is queued that the count would have to wait for.
            image_token_mask, sizes = (ids == self.config.image_token_id).cpu(), sizes_of(pixel_values)
            kwargs["vision_tokens"] = budget_of_prompt(self.config, image_token_mask, sizes)
            check_count(image_token_mask, sum(num_image_tokens(self.config, sizes, kwargs["vision_tokens"])))
        kwargs["suppress_tokens"] = with_suppressed(kwargs, self.generation_config, self.config, tokenizer_beside(self))
        return super().generate(*args, **kwargs)

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


def sizes_of(pixel_values: Tensor) -> list[tuple[int, int]]:
    """Height and width of each image of `pixel_values` [B, 3, height, width]."""
    return [(pixel_values.shape[-2], pixel_values.shape[-1])] * len(pixel_values)


def register_key_names() -> None:
    """Let files carry LLaVA's public key names (`language_model.model.*`, `multi_modal_projector.*`, ...).

    transformers applies LLaVA's renaming to its own classes only; without this a file written by one version would
    not be read by another.
    """
    for ours, stock in (("llava_stf", "llava"), ("LlavaStfModel", "LlavaModel")):
        mapping = get_checkpoint_conversion_mapping(stock)
        if mapping is not None:
            register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)


register_key_names()
