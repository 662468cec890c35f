"""What every processor of this package does alike: a placeholder per image token, and text in chunks around images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from transformers import BatchFeature, LlavaProcessor
from transformers.image_utils import make_flat_list_of_images

from llava_stf.errors import PromptError
from llava_stf.images.rgb import to_rgb
from llava_stf.models.carries_code import CarriesCode
from llava_stf.models.fusion.budget import ImageSizes
from llava_stf.models.fusion.videos import VIDEO_CLASSES
from llava_stf.models.llava_stf.chunks import tokenize_chunks

_Base: Any = LlavaProcessor if TYPE_CHECKING else object


class FusedProcessing(CarriesCode, _Base):
    """Stands before a processor of transformers among the bases.

    Modifications: an image takes one `<image>` id per token of its fused windows, and each text chunk around an image
    is tokenised on its own, as in training (on a tokenizer with `legacy=False`, Vicuna's, the ids differ from those of
    the whole string).
    """

    # Marker and id of a video's places, where the class has them.
    video_token: str | None = None
    video_token_id: int | None = None

    def num_image_tokens(self, image_sizes: ImageSizes, vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each image, `image_sizes` being height and width as `image_sizes_of` gives them."""
        raise NotImplementedError

    def image_sizes_of(self, data: dict[str, Any]) -> ImageSizes:
        """Height and width of each image, by what the image processor made of them, that tell its number of tokens."""
        return [(pixels.shape[-2], pixels.shape[-1]) for pixels in data["pixel_values"]]

    def process_images(self, images: list[Any], prompts: list[int], options: dict[str, Any]) -> dict[str, Any]:
        """What the image processor makes of images, of which the prompts have so many each.

        `prompts` holds no zeros.
        """
        return dict(self.image_processor(images, **options))

    def process_videos(self, videos: Any) -> tuple[dict[str, Any], list[int]]:
        """What the model is given of videos, and how many frames each has; see `FusedVideoProcessing`.

        Raises:
            PromptError: this model takes images alone.
        """
        raise PromptError(f"This model takes images alone; videos are for {VIDEO_CLASSES}.")

    def num_video_tokens(self, frames: Sequence[int], vision_tokens: int | None = None) -> list[int]:
        """LLM tokens of each video, given by its number of frames."""
        raise NotImplementedError

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        *,
        vision_tokens: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Token ids, attention mask and pixel values for the model.

        Args:
            images: one image or a (nested) list of them, in the order of their markers over all texts.
            text: one prompt or a list of prompts, with one `<image>` marker per image and one `<video>` per video.
            videos: for a model that takes videos, one or a list of them in the order of their markers: frames, or an
                array [frames, H, W, 3].
            vision_tokens: ids that each image, or tile, takes, for a model of several windows; default by
                `fusion_window`.
            **kwargs: as in transformers: `padding`, `return_tensors`, `text_kwargs`, `images_kwargs`, ...

        Returns:
            `input_ids` and `attention_mask` [B, L] and, with images, `pixel_values` [n_images, ..., 3, height, width]
            (float32) and what else the image processor gives, and `pixel_values_videos` [n_videos, frames, 3, height,
            width] with videos; lists instead of tensors without `return_tensors`.

        Raises:
            PromptError: markers and images do not match in number, or truncation would have to cut a prompt.
        """
        if images is None and text is None and videos is None:
            raise PromptError("Expected images or text, found neither.")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        data: dict[str, Any] = {}
        counts: dict[str, list[int]] = {}
        flat = [] if images is None else make_flat_list_of_images(self.image_processor.fetch_images(images))
        # Here and not in the image processor, which lays what is transparent on white.
        flat = [to_rgb(image) if isinstance(image, Image.Image) else image for image in flat]
        frames: list[int] = []
        if videos is not None:
            seen, frames = self.process_videos(videos)
            data.update(seen)
        texts = None if text is None else [text] if isinstance(text, str) else list(text)
        if texts is not None:
            self._check_markers(texts, images, len(flat), len(frames))
        if flat:
            data.update(self.process_images(flat, self._images_of_prompts(texts, images), merged["images_kwargs"]))
            counts[self.image_token] = self.num_image_tokens(self.image_sizes_of(data), vision_tokens)
        if frames and self.video_token is not None:
            counts[self.video_token] = self.num_video_tokens(frames, vision_tokens)
        if texts is not None:
            data.update(self._encode(texts, counts, merged["text_kwargs"]))
        return BatchFeature(data, tensor_type=merged["text_kwargs"].get("return_tensors"))

    def prompt_ids(self, text: str, counts: Sequence[int]) -> list[int]:
        """The ids of one prompt whose images, in the order of their markers, take so many ids each.

        Raises:
            PromptError: markers and counts do not match in number, or the text is no valid Unicode.
        """
        self._check_markers([text], None, len(counts), 0)
        return self.ids_of(self._expand(text, {self.image_token: iter(counts)}))

    def _images_of_prompts(self, texts: list[str] | None, images: Any) -> list[int]:
        """How many images each prompt with images has; without prompts, by how the images are nested."""
        if texts is not None:
            return [count for prompt in texts if (count := prompt.count(self.image_token))]
        if isinstance(images, list | tuple):
            return [len(group) if isinstance(group, list | tuple) else 1 for group in images if group is not None]
        return [1]

    def _check_markers(self, texts: list[str], images: Any, found: int, videos: int) -> None:
        for marker, kind, number in ((self.image_token, "image", found), (self.video_token, "video", videos)):
            written = 0 if marker is None else sum(prompt.count(marker) for prompt in texts)
            if written != number:
                raise PromptError(
                    f"Expected one {marker} marker per {kind}, found {written} markers in the text and "
                    f"{number} {kind}s."
                )
        counts = [prompt.count(self.image_token) for prompt in texts]
        if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
            for row, (count, group) in enumerate(zip(counts, images, strict=True)):
                if count != len(group):
                    raise PromptError(
                        f"Expected one {self.image_token} marker per image, found {count} markers and {len(group)} "
                        f"images in prompt {row}."
                    )

    def _encode(self, texts: list[str], counts: dict[str, list[int]], options: dict[str, Any]) -> dict[str, Any]:
        """Ids of each prompt with its placeholders, `counts` over all texts by marker, padded as `options` say."""
        left = {marker: iter(each) for marker, each in counts.items()}
        rows = [self.ids_of(self._expand(prompt, left)) for prompt in texts]
        if not options.get("add_special_tokens", True):
            rows = [row[1:] if row[:1] == [self.tokenizer.bos_token_id] else row for row in rows]
        limit, longest = options.get("max_length"), max(map(len, rows))
        if options.get("truncation") and limit is not None and longest > limit:
            most = max((count for each in counts.values() for count in each), default=0)
            raise PromptError(
                f"A prompt has {longest} tokens, up to {most} of them for each image or video, and max_length "
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

    def ids_of(self, text: str) -> list[int]:
        """Ids of one prompt, the placeholders being there. Raises `PromptError` for what is no valid Unicode."""
        others = {self.video_token: self.video_token_id} if self.video_token and self.video_token_id else None
        return tokenize_chunks(
            self.tokenizer, text, image_token_id=self.image_token_id, image_token=self.image_token, others=others
        )

    def _expand(self, prompt: str, counts: dict[str, Iterator[int]]) -> str:
        """The prompt with every marker repeated as often as the next of its `counts` says."""
        for marker, left in counts.items():
            first, *others = prompt.split(marker)
            prompt = first + "".join(marker * next(left) + text for text in others)
        return prompt
