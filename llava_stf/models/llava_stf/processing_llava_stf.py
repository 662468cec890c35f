"""The processor of LLaVA-STF: LLaVA's, with the token count of fused windows and the authors' token ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from transformers import BatchFeature, LlavaProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData

from llava_stf.errors import PromptError
from llava_stf.images.load import to_rgb
from llava_stf.models.carries_code import CarriesCode
from llava_stf.models.fusion.budget import ImageSizes, tokens_of_pixels
from llava_stf.models.llava_stf.conversation import tokenize_chunks
from llava_stf.models.llava_stf.vocabulary import ensure_pad_token


class LlavaStfProcessor(CarriesCode, LlavaProcessor):
    """Prepares images and prompts for LLaVA-STF.

    Modifications of `LlavaProcessor`: an image takes one `<image>` id per window of `fusion_window` x `fusion_window`
    patches, and each text chunk around an image is tokenised on its own, as in training (on a tokenizer with
    `legacy=False`, Vicuna's, the ids differ from those of the whole string).

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

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        *,
        vision_tokens: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Token ids, attention mask and pixel values for the model.

        Args:
            images: one image or a (nested) list of them, in the order of their markers over all texts.
            text: one prompt or a list of prompts, with one `<image>` marker per image.
            vision_tokens: ids that each image takes, for a model of several windows; default by `fusion_window`.
            **kwargs: as in `LlavaProcessor`: `padding`, `return_tensors`, `text_kwargs`, `images_kwargs`, ...

        Returns:
            `input_ids` and `attention_mask` [B, L] and, with images, `pixel_values` [n_images, 3, height, width]
            (float32); lists instead of tensors without `return_tensors`.

        Raises:
            PromptError: markers and images do not match in number, or truncation would have to cut a prompt.
        """
        if images is None and text is None:
            raise PromptError("Expected images or text, found neither.")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        data: dict[str, Any] = {}
        counts: list[int] = []
        flat = [] if images is None else make_flat_list_of_images(self.image_processor.fetch_images(images))
        # Here and not in the image processor, which lays what is transparent on white.
        flat = [to_rgb(image) if isinstance(image, Image.Image) else image for image in flat]
        if flat:
            data.update(self.image_processor(flat, **merged["images_kwargs"]))
            sizes = [(pixels.shape[-2], pixels.shape[-1]) for pixels in data["pixel_values"]]
            counts = self.num_image_tokens(sizes, vision_tokens)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            self._check_markers(texts, images, len(flat))
            data.update(self._encode(texts, counts, merged["text_kwargs"]))
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def _check_markers(self, texts: list[str], images: Any, found: int) -> None:
        counts = [prompt.count(self.image_token) for prompt in texts]
        if sum(counts) != found:
            raise PromptError(
                f"Expected one {self.image_token} marker per image, found {sum(counts)} markers in the text and "
                f"{found} images."
            )
        if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
            for row, (count, group) in enumerate(zip(counts, images, strict=True)):
                if count != len(group):
                    raise PromptError(
                        f"Expected one {self.image_token} marker per image, found {count} markers and {len(group)} "
                        f"images in prompt {row}."
                    )

    def _encode(self, texts: list[str], counts: list[int], options: dict[str, Any]) -> dict[str, Any]:
        """Ids of each prompt with the placeholders of its images, `counts` over all texts, padded as `options` say."""
        left = iter(counts)
        rows = [
            tokenize_chunks(self.tokenizer, text, image_token_id=self.image_token_id, image_token=self.image_token)
            for text in (self._expand(prompt, left) for prompt in texts)
        ]
        if not options.get("add_special_tokens", True):
            rows = [row[1:] if row[:1] == [self.tokenizer.bos_token_id] else row for row in rows]
        limit, longest = options.get("max_length"), max(map(len, rows))
        if options.get("truncation") and limit is not None and longest > limit:
            raise PromptError(
                f"A prompt has {longest} tokens, up to {max(counts, default=0)} of them for each image, and max_length "
                f"is {limit}: shorten the text; prompts with images are never cut."
            )
        padded = self.tokenizer.pad(
            {"input_ids": rows},
            padding=options.get("padding", False),
            max_length=limit,
            pad_to_multiple_of=options.get("pad_to_multiple_of"),
            padding_side=options.get("padding_side"),
        )
        return dict(padded)

    def _expand(self, prompt: str, counts: Iterator[int]) -> str:
        """The prompt with every image marker repeated as often as the next of `counts` says."""
        first, *others = prompt.split(self.image_token)
        return first + "".join(self.image_token * next(counts) + text for text in others)

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        size = kwargs.get("crop_size") or self.image_processor.crop_size
        sizes = [(size["height"], size["width"])] * len(image_sizes)
        tokens = self.num_image_tokens(sizes, kwargs.get("vision_tokens"))
        return MultiModalData(num_image_tokens=tokens, num_image_patches=[1] * len(image_sizes))
