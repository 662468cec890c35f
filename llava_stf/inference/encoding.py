"""From conversations and images to what a model takes, within the positions that it has."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import BatchFeature, LlavaForConditionalGeneration

from llava_stf.errors import CheckpointError, PromptError
from llava_stf.images.frames import Video
from llava_stf.inference.image_cache import ImageCache, digest_of
from llava_stf.inference.prefix import Prompt
from llava_stf.inference.turns import Conversation
from llava_stf.models.fusion.budget import VisionTokens, num_video_tokens, token_budgets
from llava_stf.models.fusion.detail import ANSWER_ROOM, Detail, choose_budgets
from llava_stf.models.fusion.videos import require_videos
from llava_stf.models.llava_stf.conversation import render_chat

if TYPE_CHECKING:
    from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor


class PromptEncoder:
    """A model and its processor, as far as prompts are written for it; `LlavaStf` is one.

    Args:
        model: a LLaVA-STF or a plain LLaVA.
        processor: its processor; without one nothing can be encoded.
    """

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaStfProcessor | None) -> None:
        self.model = model
        self.processor = processor

    @property
    def positions(self) -> int:
        """Most tokens that a prompt and its answer have together."""
        return self.model.config.text_config.max_position_embeddings

    @cached_property
    def image_cache(self) -> ImageCache:
        """The images that this pipeline has encoded, of those that `chat`, `reply_batch` and servers were shown."""
        return ImageCache(self)

    def encode(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Image.Image | Video]],
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
    ) -> BatchFeature:
        """Model inputs of one batch of conversations, padded on the left, on the model's device and in its dtype.

        Args:
            conversations: messages in Hugging Face's form, or a prompt as the model is to read it; not both kinds of
                `<image>` place, an image item and a marker in the text, for one image.
            images: the images of each conversation, in the order of their places in it, and its videos in theirs.
            vision_tokens: tokens per image, see `LlavaStf`. All images of a batch have one budget here; in words it is
                the least of those that they would have.
            max_vision_tokens: see `LlavaStf`.

        Returns:
            `input_ids` and `attention_mask` [B, L] and, with images, `pixel_values` [n_images, ..., 3, height, width]
            and what else the processor gives.

        Raises:
            PromptError: places and images differ in number, the chat template refuses the messages, a text is no valid
                Unicode, or a prompt does not fit the model's positions.
            FusionError: the model was not trained for that number of vision tokens.
        """
        if len(conversations) != len(images):
            raise PromptError(f"Found {len(conversations)} conversations and images for {len(images)}.")
        processor = self.require_processor()
        config, count = self.model.config, None
        if vision_tokens is not None:
            side = config.vision_config.image_size  # of what is no image
            sizes = [[(getattr(one, "height", side), getattr(one, "width", side)) for one in group] for group in images]
            room = self.positions if max_vision_tokens is None else min(self.positions, max_vision_tokens)
            chosen = [choose_budgets(config, [vision_tokens] * len(group), group, room=room) for group in sizes]
            count = min(itertools.chain(*chosen, [max(token_budgets(config))]))
        prompts = [c if isinstance(c, str) else render_chat(processor, c) for c in conversations]
        seen = [visual for group in images for visual in group]
        videos = [visual for visual in seen if isinstance(visual, Video)]
        options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        if count is not None:
            options["vision_tokens"] = count
        if videos:
            require_videos(self.model.config)
            options["videos"] = videos
        flat = [visual for visual in seen if not isinstance(visual, Video)]
        inputs = processor(images=flat or None, text=prompts, **options)
        lengths = inputs["attention_mask"].sum(-1).tolist()
        for ids, length, group in zip(inputs["input_ids"], lengths, images, strict=True):
            self._check_bound(int((ids == config.image_token_id).sum()), len(group), max_vision_tokens)
            if length >= self.positions:
                raise PromptError(self._too_long(ids, length, group, count))
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def compose(
        self,
        conversation: Conversation,
        images: Sequence[Image.Image],
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
    ) -> Prompt:
        """One conversation for `Reading`, as `encode` would have it, but that known images are not prepared again.

        Raises:
            PromptError: as `encode`.
            FusionError: as `encode`.
        """
        processor = self.require_processor()
        text = conversation if isinstance(conversation, str) else render_chat(processor, conversation)
        self.image_cache.renew()
        sizes = [(image.height, image.width) for image in images]
        room = self.room_for_images(len(processor.prompt_ids(text, [0] * len(images))), max_vision_tokens)
        budgets = choose_budgets(self.model.config, [vision_tokens] * len(images), sizes, room=room)
        pairs = zip(images, budgets, strict=True)
        seen = [self.image_cache.see(digest_of(image), image, budget) for image, budget in pairs]
        counts = [image.count for image in seen]
        ids = processor.prompt_ids(text, counts)
        self.check_length(len(ids), counts, max_vision_tokens)
        return Prompt(ids, seen)

    def room_for_images(self, text_tokens: int, max_vision_tokens: int | None = None) -> int:
        """Tokens that `"auto"` lets the images of a prompt take beside its text, an answer being left some room."""
        left = self.positions - text_tokens - min(ANSWER_ROOM, self.positions // 4)
        return left if max_vision_tokens is None else min(left, max_vision_tokens)

    def check_length(self, length: int, image_tokens: Sequence[int], max_vision_tokens: int | None = None) -> None:
        """Check that the model has positions for a prompt and one more token, and its images are within their bound.

        Args:
            length: tokens of the prompt.
            image_tokens: of these, for each image.
            max_vision_tokens: most for all images.

        Raises:
            PromptError: it has not.
        """
        self._check_bound(sum(image_tokens), len(image_tokens), max_vision_tokens)
        if length >= self.positions:
            raise PromptError(
                f"The prompt has {length} tokens, {sum(image_tokens)} of them for {len(image_tokens)} image(s), and "
                f"the model has positions for {self.positions - 1} and an answer: ask shorter or with fewer images."
            )

    def _check_bound(self, image_tokens: int, images: int, max_vision_tokens: int | None) -> None:
        if max_vision_tokens is not None and image_tokens > max_vision_tokens:
            raise PromptError(
                f"The prompt has {image_tokens} vision tokens for {images} image(s), and it may have "
                f"{max_vision_tokens}: ask for fewer of each, or with fewer images."
            )

    def _too_long(self, ids: torch.Tensor, length: int, group: Sequence[Any], vision_tokens: int | None) -> str:
        """What to say of a prompt whose ids do not fit the model's positions."""
        config, room = self.model.config, self.positions - 1
        image_tokens = int((ids == config.image_token_id).sum())
        videos = [visual for visual in group if isinstance(visual, Video)]
        said = f"The prompt has {length} tokens, {image_tokens} of them for {len(group) - len(videos)} image(s)"
        if not videos:
            return f"{said}, and the model has positions for {room} and an answer: ask shorter or with fewer images."
        frames = [len(video.frames) for video in videos]
        tokens = num_video_tokens(config, frames, vision_tokens)
        fitting = max(
            (
                number for number in range(1, max(frames))
                if length - sum(tokens) + sum(num_video_tokens(config, [number] * len(frames), vision_tokens)) <= room
            ),
            default=0,
        )  # fmt: skip
        return (
            f"{said} and {sum(tokens)} for {sum(frames)} frames of {len(videos)} video(s), and the model has positions "
            f"for {room} and an answer: {fitting} frames of each would fit, which Video(source, frames={fitting}) "
            "takes."
        )

    def require_processor(self) -> LlavaStfProcessor:
        """The processor. Raises `CheckpointError` where the checkpoint came without one."""
        if self.processor is None:
            raise CheckpointError(
                "This checkpoint came without a tokenizer or without processor_config.json, so it cannot be asked in "
                "words: use its model alone, or add the files beside the weights and load it again."
            )
        return self.processor
