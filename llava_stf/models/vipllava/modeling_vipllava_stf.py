"""ViP-LLaVA on fused tokens: five states of the tower are joined and normalised, then windows of them are fused."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import VipLlavaForConditionalGeneration, VipLlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.models.fusion.budget import VisionTokens
from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.generation import FusedGeneration, register_key_names
from llava_stf.models.fusion.modeling import FusedImages
from llava_stf.models.vipllava.configuration_vipllava_stf import VipLlavaStfConfig
from llava_stf.models.vision.states import skip_unused_blocks


class VipLlavaStfModel(FusedImages, VipLlavaModel):
    """`VipLlavaModel` whose projector fuses tokens, or averages its own over windows."""

    config_class = VipLlavaStfConfig
    config: VipLlavaStfConfig
    image_choices = ()

    def __init__(self, config: VipLlavaStfConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = build_projector(config)
        skip_unused_blocks(self.vision_tower, config.fusion_states)
        self.post_init()

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
        vision_tokens: VisionTokens = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Fused image tokens for the LLM, in `pooler_output`: one [M, H] tensor per image.

        Args:
            pixel_values: [images, 3, height, width].
            vision_feature_layer: the config's, see `check_choices`.
            vision_feature_select_strategy: as `vision_feature_layer`.
            return_dict: for callers of transformers; the result is one in any case.
            vision_tokens: M, by default the config's `image_seq_length`.
            **kwargs: of the vision tower.

        Raises:
            FusionError: the model was not made for that number of tokens or those hidden states.
        """
        self.check_choices(vision_feature_layer, vision_feature_select_strategy)
        return self.fused_squares(self.vision_tower, pixel_values, vision_tokens)


class VipLlavaStfForConditionalGeneration(FusedGeneration, VipLlavaForConditionalGeneration):
    """ViP-LLaVA that sees a quarter of its tokens: 144 where it has 576 by itself."""

    config_class = VipLlavaStfConfig
    config: VipLlavaStfConfig

    def __init__(self, config: VipLlavaStfConfig) -> None:
        super(VipLlavaForConditionalGeneration, self).__init__(config)
        self.model = VipLlavaStfModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


register_key_names("vipllava_stf", "vipllava")
register_key_names("VipLlavaStfModel", "VipLlavaModel")
