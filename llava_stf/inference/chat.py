"""A conversation of several turns with a pipeline."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

from PIL import Image
from transformers import BatchFeature

from llava_stf.inference.turns import Conversation, Message, Visual, load_visual, turn_about
from llava_stf.models.fusion.budget import VisionTokens
from llava_stf.videos import Video


class _Pipeline(Protocol):
    """What a conversation needs of a `LlavaStf`."""

    def encode(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[Image.Image | Video]],
        vision_tokens: VisionTokens,
    ) -> BatchFeature: ...

    def _answers(self, inputs: BatchFeature, max_new_tokens: int, generate_kwargs: dict[str, Any]) -> list[str]: ...

    def _pieces(
        self, inputs: BatchFeature, max_new_tokens: int, generate_kwargs: dict[str, Any]
    ) -> Generator[str, None, None]: ...


class Chat:
    """A conversation: every question is asked with all turns and images before it.

    `messages` is the history in Hugging Face's form, `images` the images and videos in the order of their markers in it. A turn
    enters both when it is answered; a question that fails leaves no trace and its images wait for the next one.
    """

    def __init__(self, llava: _Pipeline, vision_tokens: int | None = None) -> None:
        self.messages: list[Message] = []
        self.images: list[Image.Image | Video] = []
        self._llava = llava
        self._vision_tokens = vision_tokens
        self._waiting: list[Image.Image | Video] = []

    def add_image(self, source: Visual) -> None:
        """Shows an image, or a video, with the next question.

        Raises:
            ImageError: it cannot be read.
            VideoError: as `ImageError`, of a video.
        """
        self._waiting.append(load_visual(source))

    def ask(self, question: str, *, max_new_tokens: int = 128, **generate_kwargs: Any) -> str:
        """Answers the next question, which needs no new image.

        Raises:
            LlavaStfError: as `LlavaStf.ask`.
        """
        turn, inputs = self._next(question)
        answer = self._llava._answers(inputs, max_new_tokens, generate_kwargs)[0]
        self._record(turn, answer)
        return answer

    def stream(self, question: str, *, max_new_tokens: int = 128, **generate_kwargs: Any) -> Iterator[str]:
        """As `ask`, piece by piece; if the iterator is closed early, what was said so far is the answer."""
        turn, inputs = self._next(question)
        return self._recorded(turn, self._llava._pieces(inputs, max_new_tokens, generate_kwargs))

    def _next(self, question: str) -> tuple[Message, BatchFeature]:
        turn = turn_about(question, self._waiting)
        images = [*self.images, *self._waiting]
        return turn, self._llava.encode([[*self.messages, turn]], [images], self._vision_tokens)

    def _recorded(self, turn: Message, pieces: Generator[str, None, None]) -> Iterator[str]:
        said: list[str] = []
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        except GeneratorExit:
            pieces.close()
            self._record(turn, "".join(said).strip())
            raise
        self._record(turn, "".join(said).strip())

    def _record(self, turn: Message, answer: str) -> None:
        self.messages += [turn, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.images += self._waiting
        self._waiting = []
