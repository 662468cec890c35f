"""The processor of LLaVA-STF: LLaVA's, with the token count of fused windows and the authors' token ids."""

from __future__ import annotations

from typing import Any

from transformers import LlavaProcessor
from transformers.processing_utils import MultiModalData

from llava_stf.models.fusion.budget import ImageSizes, tokens_of_pixels
from llava_stf.models.fusion.processing import FusedProcessing
from llava_stf.models.llava_stf.vocabulary import ensure_pad_token


class LlavaStfProcessor(FusedProcessing, LlavaProcessor):
    """Prepares images and prompts for LLaVA-STF, see `FusedProcessing`.

    Args beyond `LlavaProcessor`'s:
        fusion_window: side k of a window in patches; 1 counts every patch.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = "default",
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 1,
        fusion_window: int = 2,
        **kwargs: Any,
    ) -> None:
        self.fusion_window = fusion_window
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )
        if self.tokenizer is not None:
            ensure_pad_token(self.tokenizer)

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each preprocessed image.

        Args:
            image_sizes: height and width of each in pixels, as they enter the tower.
            vision_tokens: what each takes; default by `fusion_window`.
        """
        if vision_tokens is not None:
            return [vision_tokens] * len(image_sizes)
        return [tokens_of_pixels(*size, self.patch_size, self.fusion_window) for size in image_sizes]

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        size = kwargs.get("crop_size") or self.image_processor.crop_size
        sizes = [(size["height"], size["width"])] * len(image_sizes)
        tokens = self.num_image_tokens(sizes, kwargs.get("vision_tokens"))
        return MultiModalData(num_image_tokens=tokens, num_image_patches=[1] * len(image_sizes))
