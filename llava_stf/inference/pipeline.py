"""Ask a LLaVA about images: one question, a batch in order, a stream of text, or a conversation of several turns.

    llava = load_model("tiny")
    llava.ask("bus.jpg", "What colour is the bus?")
    model, processor = llava

Prompts go through the processor's chat template, decoding is greedy unless told otherwise, and nothing is ever cut to
make a prompt fit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from PIL import Image
from transformers import BatchFeature, LlavaForConditionalGeneration

from llava_stf.errors import MissingDependencyError, PromptError, one_line
from llava_stf.images.frames import Video
from llava_stf.inference.answer_text import Decoder
from llava_stf.inference.chat import Chat
from llava_stf.inference.encoding import PromptEncoder
from llava_stf.inference.generation import check_one_answer, generation_options, one_piece, searches, stream_pieces
from llava_stf.inference.reading import Reading, other_ways, reuses
from llava_stf.inference.turns import Conversation, Images, as_list, load_visual, turn_about
from llava_stf.models.fusion.budget import VisionTokens, tokens_per_image
from llava_stf.models.fusion.detail import DETAILS, Detail, choose_budgets

if TYPE_CHECKING:
    from llava_stf.inference.compiled import CompiledGeneration
    from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor


class LlavaStf(PromptEncoder):
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
        super().__init__(model, processor)
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

    def reuses(self, generate_kwargs: Mapping[str, Any] = MappingProxyType({})) -> bool:
        """Whether image tokens and what was read serve other prompts, with these keywords of `generate`."""
        return reuses(self) and not other_ways(generate_kwargs, self.model.generation_config)

    @property
    def compiled(self) -> bool:
        """Whether generation is compiled."""
        return self._compiled is not None

    def generate(self, inputs: BatchFeature, *, max_new_tokens: int = 128, **generate_kwargs: Any) -> Any:
        """Prompt and new ids [B, L + T] of what `encode` gave; greedy unless told otherwise, compiled where asked for.

        T is at most `max_new_tokens` and what the shortest row has positions for. With `return_dict_in_generate`, here
        or in the model's generation settings, it is `generate`'s record of these and of what else was asked for. Raises
        `PromptError` below 1, and for several sequences of a prompt with several images on transformers before 5.19;
        `CheckpointError` where the model computes no numbers, `MissingDependencyError` where a setting needs a package.
        """
        room = self.positions - int(inputs["attention_mask"].sum(-1).min())
        tokenizer = None if self.processor is None else self.processor.tokenizer
        options = generation_options(self.model, tokenizer, generate_kwargs, max_new_tokens, inputs, room=room)
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
        processor = self.require_processor()
        return Decoder(processor.tokenizer, str(processor.chat_template), self.end_ids)

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer, by the model's generation settings."""
        ends = self.model.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
