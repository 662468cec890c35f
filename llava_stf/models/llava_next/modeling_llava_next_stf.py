"""LLaVA-NeXT on fused tokens: every tile is fused on its own, then tiles are joined as LLaVA-NeXT joins them."""

from __future__ import annotations

from torch import nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextModel

from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.generation import FusedGeneration, register_key_names
from llava_stf.models.fusion.tiled import TiledImages
from llava_stf.models.llava_next.configuration_llava_next_stf import LlavaNextStfConfig
from llava_stf.models.vision.states import skip_unused_blocks


class LlavaNextStfModel(TiledImages, LlavaNextModel):
    """`LlavaNextModel` whose projector fuses tokens and whose tower runs only as deep as the fusion layers reach."""

    config_class = LlavaNextStfConfig
    config: LlavaNextStfConfig

    def __init__(self, config: LlavaNextStfConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = build_projector(config)
        skip_unused_blocks(self.vision_tower, config.fusion_states)
        self.post_init()


class LlavaNextStfForConditionalGeneration(FusedGeneration, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT that sees a quarter of its tokens: 744 of a 672x672 image, where it has 2,928 by itself."""

    config_class = LlavaNextStfConfig
    config: LlavaNextStfConfig

    def __init__(self, config: LlavaNextStfConfig) -> None:
        super(LlavaNextForConditionalGeneration, self).__init__(config)
        self.model = LlavaNextStfModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


register_key_names("llava_next_stf", "llava_next")
register_key_names("LlavaNextStfModel", "LlavaNextModel")
