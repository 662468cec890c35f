"""The processor of LLaVA-NeXT on fused tokens: counts come from the sizes of images."""

from __future__ import annotations

from math import isqrt
from typing import Any

from transformers import LlavaNextProcessor
from transformers.processing_utils import MultiModalData

from llava_stf.models.fusion.budget import ImageSizes
from llava_stf.models.fusion.processing import FusedProcessing
from llava_stf.models.fusion.tiles import tile_tokens
from llava_stf.models.llava_stf.vocabulary import ensure_pad_token


class LlavaNextStfProcessor(FusedProcessing, LlavaNextProcessor):
    """Prepares images in tiles and prompts, see `FusedProcessing`.

    Args beyond `LlavaNextProcessor`'s:
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
        """LLM tokens of each image.

        Args:
            image_sizes: height and width of each in pixels, before it is resized.
            vision_tokens: what each tile takes; default by `fusion_window`.
        """
        side, pinpoints = self._tile_side(), self.image_processor.image_grid_pinpoints
        grid = side // self.patch_size
        window = self.fusion_window if vision_tokens is None else grid // isqrt(vision_tokens)
        return [tile_tokens((int(height), int(width)), pinpoints, side, grid, window) for height, width in image_sizes]

    def image_sizes_of(self, data: dict[str, Any]) -> ImageSizes:
        """Height and width of each image before it was resized."""
        return [(int(height), int(width)) for height, width in data["image_sizes"]]

    def ids_of(self, text: str) -> list[int]:
        """As for LLaVA-1.5, but that a prompt begins with BOS only if the template or the tokenizer says so."""
        ids, bos = super().ids_of(text), self.tokenizer.bos_token
        if bos is None or text.startswith(bos) or self.tokenizer(bos)["input_ids"] != [self.tokenizer.bos_token_id]:
            return ids
        return ids[1:]

    def _tile_side(self) -> int:
        size = self.image_processor.crop_size or self.image_processor.size
        return size.get("height") or size.get("shortest_edge")

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        tokens = self.num_image_tokens([(height, width) for height, width in image_sizes], kwargs.get("vision_tokens"))
        return MultiModalData(num_image_tokens=tokens, num_image_patches=[1] * len(image_sizes))
