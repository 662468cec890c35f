"""LLaVA-STF as a Hugging Face model: `LlavaForConditionalGeneration` with another projector and a shorter tower run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.errors import FusionError
from llava_stf.models.fusion.budget import VisionTokens
from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.generation import FusedGeneration, register_key_names
from llava_stf.models.fusion.modeling import FusedImages
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.vision.states import skip_unused_blocks


class LlavaStfModel(FusedImages, LlavaModel):
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
        `image_seq_length`. The fusion layers are a matter of the weights, so no others can be asked for.

        Raises:
            FusionError: another count than the model was made for, or other layers or another select strategy than the
                config's.
        """
        self.check_choices(vision_feature_layer, vision_feature_select_strategy)
        if image_sizes is not None:
            raise FusionError("LLaVA-STF takes square images of one size and no image_sizes.")
        return self.fused_squares(self.vision_tower, pixel_values, vision_tokens)


class LlavaStfForConditionalGeneration(FusedGeneration, LlavaForConditionalGeneration):
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


register_key_names("llava_stf", "llava")
register_key_names("LlavaStfModel", "LlavaModel")
