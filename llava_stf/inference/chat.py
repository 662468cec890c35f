"""A conversation of several turns with a pipeline."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import Any

from PIL import Image
from transformers import BatchFeature, StoppingCriteriaList

from llava_stf.images.frames import Video
from llava_stf.inference.interface import Pipeline
from llava_stf.inference.prefix import PrefixCache
from llava_stf.inference.reading import Heard, Reading
from llava_stf.inference.turns import Message, Visual, load_visual, turn_about
from llava_stf.models.fusion.budget import VisionTokens
from llava_stf.models.fusion.detail import Detail


class Chat:
    """A conversation: every question is asked with all turns and images before it.

    What the model has read of it is read once: a turn costs its own tokens, and those behind the first change where
    `messages` or `images` were changed by hand. Keys and values of the last turn are kept for that, as long as the chat
    is. Answers are those of the whole conversation asked anew. A model that cannot go on (see `reuses` of
    `llava_stf.inference.reading`), or keywords of `generate` with which it cannot, have it read anew at every turn.

    `messages` is the history in Hugging Face's form, `images` the images and videos in the order of their markers in
    it. A turn enters both when it is answered; a question that fails leaves no trace and its images wait for the next
    one.
    """

    def __init__(
        self, llava: Pipeline, vision_tokens: VisionTokens | Detail = None, max_vision_tokens: int | None = None
    ) -> None:
        self.messages: list[Message] = []
        self.images: list[Image.Image | Video] = []
        self._llava = llava
        self._budget = vision_tokens, max_vision_tokens
        self._waiting: list[Image.Image | Video] = []
        self._known = PrefixCache(limit=sys.maxsize, most=1)

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
        turn, inputs, reading = self._next(question, generate_kwargs)
        heard, options = _listening(generate_kwargs)
        answer = self._llava._answers(inputs, max_new_tokens, options)[0]
        self._record(turn, answer, reading, heard)
        return answer

    def stream(self, question: str, *, max_new_tokens: int = 128, **generate_kwargs: Any) -> Iterator[str]:
        """As `ask`, piece by piece; if the iterator is closed early, what was said so far is the answer."""
        turn, inputs, reading = self._next(question, generate_kwargs)
        heard, options = _listening(generate_kwargs)
        return self._recorded(turn, self._llava._pieces(inputs, max_new_tokens, options), reading, heard)

    def _next(self, question: str, options: dict[str, Any]) -> tuple[Message, BatchFeature, Reading | None]:
        """The turn and its model inputs; with a reading where what was read before is not read again."""
        turn = turn_about(question, self._waiting)
        conversation, images = [*self.messages, turn], [*self.images, *self._waiting]
        shown = [image for image in images if not isinstance(image, Video)]
        if not self._llava.reuses(options) or len(shown) < len(images):
            return turn, self._llava.encode([conversation], [images], *self._budget), None
        prompt = self._llava.compose(conversation, shown, *self._budget)
        reading = Reading(self._llava, [prompt], self._known)
        return turn, reading.inputs, reading

    def _recorded(
        self, turn: Message, pieces: Generator[str, None, None], reading: Reading | None, heard: Heard
    ) -> Iterator[str]:
        said: list[str] = []
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        except GeneratorExit:
            pieces.close()
            self._record(turn, "".join(said).strip(), reading, heard)
            raise
        self._record(turn, "".join(said).strip(), reading, heard)

    def _record(self, turn: Message, answer: str, reading: Reading | None, heard: Heard) -> None:
        self.messages += [turn, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.images += self._waiting
        self._waiting = []
        if reading is not None and heard.ids is not None:
            for prefix in reading.prefixes(heard.ids, [heard.ids.shape[1] - reading.inputs["input_ids"].shape[1]]):
                self._known.put(prefix)


def _listening(options: dict[str, Any]) -> tuple[Heard, dict[str, Any]]:
    """Keywords of `generate` with one more stopping criterion, which hears the answer's ids."""
    heard = Heard()
    return heard, {**options, "stopping_criteria": StoppingCriteriaList([*options.get("stopping_criteria", []), heard])}
