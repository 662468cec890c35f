"""Who answers: one interface, and its form on transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava_stf.batch.rows import Row
from llava_stf.errors import DataError, LlavaStfError, PromptError
from llava_stf.images import load_image

if TYPE_CHECKING:
    from llava_stf.inference import LlavaStf, Message


@dataclass(frozen=True)
class Answer:
    """What the model said to a row, or in `error` the sentence why it said nothing."""

    text: str | None
    error: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One user message, and the images of its markers."""

    message: Message
    images: list[Image.Image]


class Engine(ABC):
    """A loaded model that answers greedily, `batch_size` rows at a time."""

    batch_size: int

    @abstractmethod
    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answers to these prompts.

        Raises:
            PromptError: one of them cannot be answered.
        """

    def answer_rows(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer for each row, in order; a row that cannot be answered takes no other row with it."""
        answers: list[Answer] = []
        for start in range(0, len(rows), self.batch_size):
            answers += self._answer_batch(rows[start : start + self.batch_size])
        return answers

    def _answer_batch(self, rows: Sequence[Row]) -> list[Answer]:
        prompts: dict[int, Prompt] = {}
        answers: dict[int, Answer] = {}
        for row in rows:
            try:
                prompts[row.index] = _read(row)
            except LlavaStfError as error:
                answers[row.index] = Answer(None, str(error))
        answers.update(zip(prompts, self._ask_apart(list(prompts.values())), strict=True))
        return [answers[row.index] for row in rows]

    def _ask_apart(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """All prompts at once; if one of them spoils that, one by one."""
        if not prompts:
            return []
        try:
            return [Answer(text) for text in self.ask(prompts)]
        except PromptError as error:
            if len(prompts) == 1:
                return [Answer(None, str(error))]
            return [self._ask_apart([prompt])[0] for prompt in prompts]


class TransformersEngine(Engine):
    """A model of `load_model`.

    Args:
        llava: the model.
        batch_size: rows that are asked together.
        **options: of `LlavaStf.reply_batch`.
    """

    def __init__(self, llava: LlavaStf, *, batch_size: int, **options: Any) -> None:
        self.batch_size = batch_size
        self._llava = llava
        self._options = options

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answers; too little memory is an error of its own, with what to do."""
        import torch

        conversations: list[list[dict[str, Any]]] = [[prompt.message] for prompt in prompts]
        images = [prompt.images for prompt in prompts]
        try:
            return self._llava.reply_batch(conversations, images, **self._options)
        except torch.OutOfMemoryError as error:
            raise LlavaStfError(
                f"The GPU has no room for {len(prompts)} rows at once: the same command with a smaller --batch-size "
                "goes on from here."
            ) from error


def _read(row: Row) -> Prompt:
    from llava_stf.inference import user_turn

    if row.reason is not None:
        raise DataError(row.reason)
    images = [load_image(source) for source in row.images]
    return Prompt(user_turn(row.question, len(images)), images)
