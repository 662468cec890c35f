"""LLaVA-NeXT-Video on fused tokens: images as in LLaVA-NeXT, and frames behind their pooler or in its place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.models.fusion.budget import VisionTokens, resolve_window
from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.generation import FusedGeneration, register_key_names
from llava_stf.models.fusion.tiled import TiledImages
from llava_stf.models.llava_next_video.configuration_llava_next_video_stf import LlavaNextVideoStfConfig
from llava_stf.models.vision.states import select_patch_states, skip_unused_blocks


class LlavaNextVideoStfModel(TiledImages, LlavaNextVideoModel):
    """`LlavaNextVideoModel` with a projector that fuses tokens and a tower run only as deep as the fusion layers."""

    config_class = LlavaNextVideoStfConfig
    config: LlavaNextVideoStfConfig

    def __init__(self, config: LlavaNextVideoStfConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = build_projector(config)
        skip_unused_blocks(self.vision_tower, config.fusion_states)
        self.post_init()

    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
        vision_tokens: VisionTokens = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Fused tokens of videos for the LLM, in `pooler_output`: one tensor [tokens, H] per video.

        Args:
            pixel_values_videos: [videos, frames, 3, height, width].
            vision_feature_layer: the config's, see `check_choices`.
            vision_feature_select_strategy: as `vision_feature_layer`.
            return_dict: for callers of transformers; the result is one in any case.
            vision_tokens: tokens of a tile, whose windows frames have, too.
            **kwargs: of the vision tower.

        Raises:
            FusionError: the model was not made for that number of tokens or those hidden states.
        """
        config = self.config
        self.check_choices(vision_feature_layer, vision_feature_select_strategy)
        window = resolve_window(config, vision_tokens)
        states = select_patch_states(self.vision_tower, pixel_values_videos.flatten(0, 1), config.fusion_states)
        if config.fusion_pool_frames:
            states = [self.vision_resampler(state) for state in states]
        tokens = self.multi_modal_projector(states, window)
        videos = tokens.unflatten(0, pixel_values_videos.shape[:2]).flatten(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=states[0], pooler_output=list(videos))


class LlavaNextVideoStfForConditionalGeneration(FusedGeneration, LlavaNextVideoForConditionalGeneration):
    """LLaVA-NeXT-Video that sees a quarter of its tokens: 36 of a frame, where it has 144 by itself."""

    config_class = LlavaNextVideoStfConfig
    config: LlavaNextVideoStfConfig

    def __init__(self, config: LlavaNextVideoStfConfig) -> None:
        super(LlavaNextVideoForConditionalGeneration, self).__init__(config)
        self.model = LlavaNextVideoStfModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


register_key_names("llava_next_video_stf", "llava_next_video")
register_key_names("LlavaNextVideoStfModel", "LlavaNextVideoModel")
