"""Video-LLaVA on fused tokens: square images by one tower, frames with their class token by another."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VideoLlavaForConditionalGeneration, VideoLlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.models.fusion.budget import VisionTokens, resolve_window
from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.generation import FusedGeneration, register_key_names
from llava_stf.models.fusion.modeling import FusedImages
from llava_stf.models.video_llava.configuration_video_llava_stf import VideoLlavaStfConfig
from llava_stf.models.vision.states import select_hidden_states, skip_unused_blocks, towers_of

# What the class in transformers calls the pixels of images; the former name until 5.22 or so.
_STOCK = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
PIXELS = "pixel_values" if "pixel_values" in _STOCK else "pixel_values_images"


class VideoLlavaStfModel(FusedImages, VideoLlavaModel):
    """`VideoLlavaModel` with a projector that fuses tokens and towers run only as deep as the fusion layers."""

    config_class = VideoLlavaStfConfig
    config: VideoLlavaStfConfig
    image_choices = ()

    def __init__(self, config: VideoLlavaStfConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = build_projector(config)
        for tower in towers_of(self):
            skip_unused_blocks(tower, config.fusion_states)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, pixel_values_images: Tensor | None = None, **kwargs: Any) -> Any:
        """As `FusedImages.forward`; `pixel_values_images` is another name of `pixel_values`."""
        if pixel_values_images is not None:
            kwargs["pixel_values"] = pixel_values_images
        return super().forward(input_ids, **kwargs)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
        vision_tokens: VisionTokens = None,
        pixel_values_images: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Fused image tokens for the LLM, in `pooler_output`: one [M, H] tensor per image.

        Args:
            pixel_values: [images, 3, height, width].
            vision_feature_layer: the config's, see `check_choices`.
            vision_feature_select_strategy: as `vision_feature_layer`.
            return_dict: for callers of transformers; the result is one in any case.
            vision_tokens: M, by default the config's `image_seq_length`.
            pixel_values_images: another name of `pixel_values`.
            **kwargs: of the vision tower.

        Raises:
            FusionError: the model was not made for that number of tokens or those hidden states.
        """
        pixels: Any = pixel_values_images if pixel_values is None else pixel_values
        self.check_choices(vision_feature_layer, vision_feature_select_strategy)
        return self.fused_squares(self.image_tower, pixels, vision_tokens)

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

        A frame has its class token, which is fused with nothing, before those of its windows.

        Args:
            pixel_values_videos: [videos, frames, 3, height, width].
            vision_feature_layer: the config's, see `check_choices`.
            vision_feature_select_strategy: as `vision_feature_layer`.
            return_dict: for callers of transformers; the result is one in any case.
            vision_tokens: tokens of an image, whose windows frames have, too.
            **kwargs: of the vision tower.

        Raises:
            FusionError: the model was not made for that number of tokens or those hidden states.
        """
        config = self.config
        self.check_choices(vision_feature_layer, vision_feature_select_strategy)
        window = resolve_window(config, vision_tokens)
        frames = pixel_values_videos.flatten(0, 1)
        states = select_hidden_states(self.video_tower, frames, config.fusion_states)
        patches = self.multi_modal_projector([state[:, 1:] for state in states], window)
        # A window that holds nothing but the class token: its mean is the token itself.
        alone = [state[:, :1].expand(-1, window**2, -1) for state in states]
        tokens = torch.cat([self.multi_modal_projector(alone, window), patches], dim=1)
        videos = tokens.unflatten(0, pixel_values_videos.shape[:2]).flatten(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=states[0], pooler_output=list(videos))


class VideoLlavaStfForConditionalGeneration(FusedGeneration, VideoLlavaForConditionalGeneration):
    """Video-LLaVA that sees a quarter of its tokens: 65 of a frame, where it has 257 by itself."""

    config_class = VideoLlavaStfConfig
    config: VideoLlavaStfConfig
    pixels_name = PIXELS

    def __init__(self, config: VideoLlavaStfConfig) -> None:
        super(VideoLlavaForConditionalGeneration, self).__init__(config)
        self.model = VideoLlavaStfModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


register_key_names("video_llava_stf", "video_llava")
register_key_names("VideoLlavaStfModel", "VideoLlavaModel")
