"""LLaVA-OneVision on fused tokens: tiles as in LLaVA-NeXT, several images of a prompt whole, and videos."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_stf.errors import PromptError
from llava_stf.models.fusion.budget import ImageSizes, VisionTokens, resolve_window
from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.generation import FusedGeneration, register_key_names
from llava_stf.models.fusion.modeling import frames_of
from llava_stf.models.fusion.tiled import TiledImages, whole_windows
from llava_stf.models.fusion.tiles import WHOLE
from llava_stf.models.fusion.videos import onevision_videos
from llava_stf.models.llava_onevision.configuration_llava_onevision_stf import LlavaOnevisionStfConfig
from llava_stf.models.vision.states import select_patch_states, skip_unused_blocks


class LlavaOnevisionStfModel(TiledImages, LlavaOnevisionModel):
    """`LlavaOnevisionModel` with a projector that fuses tokens and a tower run only as deep as the fusion layers."""

    config_class = LlavaOnevisionStfConfig
    config: LlavaOnevisionStfConfig
    image_choices = ("image_sizes", "batch_num_images")

    def __init__(self, config: LlavaOnevisionStfConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = build_projector(config)
        skip_unused_blocks(self.vision_tower, config.fusion_states)
        self.post_init()

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | ImageSizes | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
        vision_tokens: VisionTokens = None,
        batch_num_images: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """As `TiledImages.get_image_features`; `batch_num_images` says how many images each prompt has, default one."""
        return super().get_image_features(
            pixel_values,
            image_sizes,
            vision_feature_layer,
            vision_feature_select_strategy,
            return_dict,
            vision_tokens,
            batch_num_images=batch_num_images,
            **kwargs,
        )

    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
        vision_tokens: VisionTokens = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Fused tokens of videos for the LLM, in `pooler_output`: one tensor [tokens, H] per video, a newline last.

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
        tokens = self.multi_modal_projector(whole_windows(states, window), window)
        frames = frames_of(pixel_values_videos)
        packed = onevision_videos(tokens, frames, self.image_newline, config.fusion_pool_frames)
        return BaseModelOutputWithPooling(last_hidden_state=states[0], pooler_output=packed)

    def shown_sizes(self, sizes: ImageSizes, batch_num_images: Any = None) -> ImageSizes:
        """As `TiledImages.shown_sizes`: `WHOLE` for images that stand in their prompt with others.

        Raises:
            PromptError: `batch_num_images` is of another number of images.
        """
        if batch_num_images is None:
            return sizes
        numbers = [int(number) for number in batch_num_images]
        if sum(numbers) != len(sizes):
            raise PromptError(f"batch_num_images {numbers} are {sum(numbers)} images, found the sizes of {len(sizes)}.")
        alone = [number == 1 for number in numbers for _ in range(number)]
        return [size if tiled else WHOLE for size, tiled in zip(sizes, alone, strict=True)]


class LlavaOnevisionStfForConditionalGeneration(FusedGeneration, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision that sees a quarter of its tokens: 1,932 of a 1080x1920 image, where it has 7,269 by itself."""

    config_class = LlavaOnevisionStfConfig
    config: LlavaOnevisionStfConfig

    def __init__(self, config: LlavaOnevisionStfConfig) -> None:
        super(LlavaOnevisionForConditionalGeneration, self).__init__(config)
        self.model = LlavaOnevisionStfModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


register_key_names("llava_onevision_stf", "llava_onevision")
register_key_names("LlavaOnevisionStfModel", "LlavaOnevisionModel")
