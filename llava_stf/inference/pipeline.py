"""Ask a LLaVA about images: one question, a batch in order, a stream of text, or a conversation of several turns.

    llava = load_model("tiny")
    llava.ask("bus.jpg", "What colour is the bus?")
    model, processor = llava

Prompts go through the processor's chat template, decoding is greedy unless told otherwise, and nothing is ever cut to
make a prompt fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import (
    BatchFeature,
    LlavaForConditionalGeneration,
    LogitsProcessorList,
)

from llava_stf.errors import CheckpointError, MissingDependencyError, PromptError, one_line
from llava_stf.images.frames import Video
from llava_stf.inference.answer_text import Decoder
from llava_stf.inference.chat import Chat
from llava_stf.inference.generation import RefuseNan, check_one_answer, one_piece, searches, stream_pieces
from llava_stf.inference.image_cache import ImageCache, digest_of
from llava_stf.inference.prefix import Prompt
from llava_stf.inference.reading import Reading, other_ways, reuses
from llava_stf.inference.turns import Conversation, Images, as_list, load_visual, turn_about
from llava_stf.models.fusion.budget import (
    ANSWER_ROOM,
    DETAILS,
    Detail,
    VisionTokens,
    choose_budgets,
    num_video_tokens,
    token_budgets,
    tokens_per_image,
)
from llava_stf.models.fusion.videos import require_videos
from llava_stf.models.llava_stf.conversation import render_chat
from llava_stf.models.llava_stf.vocabulary import with_suppressed

if TYPE_CHECKING:
    from llava_stf.inference.compiled import CompiledGeneration
    from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor


class LlavaStf:
    """The pipeline: a LLaVA and its processor, ready to be asked; unpacks to `(model, processor)`.

    Args:
        model: a LLaVA-STF, or a plain LLaVA (the 100 % baseline).
        processor: its processor; `None` where the checkpoint has no tokenizer, and then nothing can be asked.
        compiled: what generates in the model's place (see `load_model`); `None` is the model itself.

    Every asking method takes `images`, one `load_image` source or a list of them for several images in one prompt,
    and passes further keywords to `generate`. Where the model takes videos, a `Video`, an array [frames, H, W, 3] or a
    path that ends as a video's stands in the place of an image, and `<video>` is its marker. The images stand before
    the question; a question that holds exactly as many `<image>` markers as there are images puts them there instead.
    `vision_tokens` asks a model that was trained for several counts for one of them; by default an image takes
    `LlavaStf.vision_tokens`. Where images are cut into tiles these are tokens of one tile, see `num_image_tokens`.
    `"low"`, `"high"` and `"auto"` choose among the model's counts, see `choose_budgets`; `max_vision_tokens` is the
    most that all images of a prompt may take. They raise:
        ImageError: an image cannot be read.
        VideoError: a video cannot be read.
        PromptError: the question is empty, there is no image, markers and images differ in number, or the prompt does
            not fit the model's positions.
        FusionError: the model was not trained for that number of vision tokens, or takes no videos.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaStfProcessor | None,
        compiled: CompiledGeneration | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self._compiled = compiled

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield self.processor

    @property
    def vision_tokens(self) -> int:
        """Tokens that the LLM sees of an image of the tower's own size, unless asked for others."""
        return tokens_per_image(self.model.config)

    def ask(
        self,
        images: Images,
        question: str,
        *,
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
        max_new_tokens: int = 128,
        **generate_kwargs: Any,
    ) -> str:
        """Answers one question; the answer ends at the model's end token, `max_new_tokens` or its last position."""
        pair, options = (images, question), {"max_new_tokens": max_new_tokens, **generate_kwargs}
        return self.ask_batch([pair], vision_tokens=vision_tokens, max_vision_tokens=max_vision_tokens, **options)[0]

    def ask_batch(
        self,
        pairs: Sequence[tuple[Images, str]],
        *,
        batch_size: int = 16,
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
        max_new_tokens: int = 128,
        **generate_kwargs: Any,
    ) -> list[str]:
        """Answers (images, question) pairs, `batch_size` at a time, in their order.

        The answers are those of `ask`, one by one, up to the rounding of the model's dtype.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise PromptError(f"batch_size must be a whole number of at least 1, found {batch_size!r}.")
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise PromptError(f"Expected pairs of images and a question, found {type(pair).__name__}.")
        turns = [turn_about(question, as_list(images, required=True)) for images, question in pairs]
        answers: list[str] = []
        for start in range(0, len(pairs), batch_size):
            rows = list(range(start, min(start + batch_size, len(pairs))))
            if self._compiled is not None and start:
                rows += rows[-1:] * (batch_size - len(rows))  # a smaller last batch would be compiled for its own size
            loaded = [[load_visual(source) for source in as_list(pairs[row][0])] for row in rows]
            budget = vision_tokens, max_vision_tokens
            inputs = self._batch([[turns[row]] for row in rows], loaded, *budget, generate_kwargs)
            answers += self._answers(inputs, max_new_tokens, generate_kwargs)
        return answers[: len(pairs)]

    def reply_batch(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Image.Image | Video]],
        *,
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
        max_new_tokens: int = 128,
        **generate_kwargs: Any,
    ) -> list[str]:
        """The next answer of each conversation, all in one batch; arguments and errors as in `encode`.

        An image that was encoded for an earlier batch or a `chat` is not encoded again.
        """
        budget = vision_tokens, max_vision_tokens
        inputs = self._batch(conversations, images, *budget, generate_kwargs, keeps_images=True)
        return self._answers(inputs, max_new_tokens, generate_kwargs)

    def stream(
        self,
        images: Images,
        question: str,
        *,
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
        max_new_tokens: int = 128,
        **generate_kwargs: Any,
    ) -> Iterator[str]:
        """Answers one question piece by piece, as text is settled; the pieces join to what `ask` returns.

        A prompt that cannot be answered raises here, not at the first piece. Closing the iterator ends the generation.
        """
        turn = turn_about(question, as_list(images, required=True))
        loaded = [load_visual(source) for source in as_list(images)]
        inputs = self._batch([[turn]], [loaded], vision_tokens, max_vision_tokens, generate_kwargs)
        return self._pieces(inputs, max_new_tokens, generate_kwargs)

    def chat(
        self,
        images: Images = (),
        *,
        vision_tokens: VisionTokens | Detail = None,
        max_vision_tokens: int | None = None,
    ) -> Chat:
        """Opens a conversation about these images; more can be added at every turn."""
        if vision_tokens is not None:
            choose_budgets(self.model.config, [vision_tokens], [(1, 1)], room=self.positions)
        conversation = Chat(self, vision_tokens, max_vision_tokens)
        for source in as_list(images):
            conversation.add_image(source)
        return conversation

    def _batch(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Image.Image | Video]],
        vision_tokens: VisionTokens | Detail,
        max_vision_tokens: int | None,
        generate_kwargs: Mapping[str, Any],
        *,
        keeps_images: bool = False,
    ) -> BatchFeature:
        """Inputs of one batch: of kept images, or where images may have budgets of their own, from their tokens."""
        budget = vision_tokens, max_vision_tokens
        shown = [[image for image in group if not isinstance(image, Video)] for group in images]
        in_tokens = keeps_images or vision_tokens in DETAILS
        if shown != [list(group) for group in images] or not (in_tokens and self.reuses(generate_kwargs)):
            return self.encode(conversations, images, *budget)
        if len(conversations) != len(images):
            raise PromptError(f"Found {len(conversations)} conversations and images for {len(images)}.")
        return Reading(self, [self.compose(*each, *budget) for each in zip(conversations, shown, strict=True)]).inputs

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
            vision_tokens: tokens per image, see the class. All images of a batch have one budget here; in words it is
                the least of those that they would have.
            max_vision_tokens: see the class.

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
        processor = self._require_processor()
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
        processor = self._require_processor()
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

    def reuses(self, generate_kwargs: Mapping[str, Any] = MappingProxyType({})) -> bool:
        """Whether image tokens and what was read serve other prompts, with these keywords of `generate`."""
        return reuses(self) and not other_ways(generate_kwargs, self.model.generation_config)

    @cached_property
    def image_cache(self) -> ImageCache:
        """The images that this pipeline has encoded, of those that `chat`, `reply_batch` and servers were shown."""
        return ImageCache(self)

    @property
    def compiled(self) -> bool:
        """Whether generation is compiled."""
        return self._compiled is not None

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

    def _require_processor(self) -> LlavaStfProcessor:
        if self.processor is None:
            raise CheckpointError(
                "This checkpoint came without a tokenizer or without processor_config.json, so it cannot be asked in "
                "words: use its model alone, or add the files beside the weights and load it again."
            )
        return self.processor

    @property
    def positions(self) -> int:
        """Most tokens that a prompt and its answer have together."""
        return self.model.config.text_config.max_position_embeddings

    def generate(self, inputs: BatchFeature, *, max_new_tokens: int = 128, **generate_kwargs: Any) -> Any:
        """Prompt and new ids [B, L + T] of what `encode` gave; greedy unless told otherwise, compiled where asked for.

        T is at most `max_new_tokens` and what the shortest row has positions for. With `return_dict_in_generate`, here
        or in the model's generation settings, it is `generate`'s record of these and of what else was asked for. Raises
        `PromptError` below 1, `CheckpointError` where the model computes no numbers, `MissingDependencyError` where a
        setting needs a package.
        """
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise PromptError(f"max_new_tokens must be a whole number of at least 1, found {max_new_tokens!r}.")
        room = self.positions - int(inputs["attention_mask"].sum(-1).min())
        greedy = {} if "generation_config" in generate_kwargs else {"do_sample": False}
        options = {**greedy, **generate_kwargs, "max_new_tokens": min(max_new_tokens, room)}
        tokenizer = None if self.processor is None else self.processor.tokenizer
        settings = options.get("generation_config") or self.model.generation_config
        if options.get("stop_strings", settings.stop_strings):
            options.setdefault("tokenizer", tokenizer)
        if len(inputs["input_ids"]) > 1:
            options["prompt_lookup_num_tokens"] = None  # faster for one row, not done for several
        options["logits_processor"] = LogitsProcessorList([*options.get("logits_processor", []), RefuseNan()])
        options["suppress_tokens"] = with_suppressed(
            options, self.model.generation_config, self.model.config, tokenizer
        )
        if self._compiled is not None and self._compiled.covers(options):
            return self._compiled.generate(inputs, options)
        try:
            return self.model.generate(**inputs, **options)
        except ImportError as error:  # of a package that a setting needs, a quantized cache for one
            raise MissingDependencyError(one_line(error)) from error

    def _answers(self, inputs: BatchFeature, max_new_tokens: int, generate_kwargs: dict[str, Any]) -> list[str]:
        check_one_answer(generate_kwargs, self.model.generation_config)
        options = {**generate_kwargs, "return_dict_in_generate": False}
        new = self.generate(inputs, max_new_tokens=max_new_tokens, **options)[:, inputs["input_ids"].shape[1] :]
        rooms = (self.positions - inputs["attention_mask"].sum(-1)).tolist()
        rows = [row[:room] for row, room in zip(new.tolist(), rooms, strict=True)]
        return [self.decoder(row).strip() for row in rows]

    def _pieces(
        self, inputs: BatchFeature, max_new_tokens: int, generate_kwargs: dict[str, Any]
    ) -> Generator[str, None, None]:
        check_one_answer(generate_kwargs, self.model.generation_config)
        if searches(generate_kwargs, self.model.generation_config):
            return one_piece(lambda: self._answers(inputs, max_new_tokens, generate_kwargs)[0])
        generate = partial(self.generate, inputs, max_new_tokens=max_new_tokens)
        return stream_pieces(generate, generate_kwargs, self.decoder)

    @cached_property
    def decoder(self) -> Decoder:
        """Makes text of the ids of an answer."""
        processor = self._require_processor()
        return Decoder(processor.tokenizer, str(processor.chat_template), self.end_ids)

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer, by the model's generation settings."""
        ends = self.model.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
