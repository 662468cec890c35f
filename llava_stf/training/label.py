"""A model's answers as training data: questions about images in, the same conversations with its answers out.

Every question is asked with the turns before it and the model's own answers to them, so that what a student learns from
is what its teacher would have said. The rows are LLaVA's JSON lines, in the order of the questions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava_stf.data.bad_samples import BadSamples
from llava_stf.data.label_questions import Questions, human_turns
from llava_stf.data.preparation import Preparation
from llava_stf.data.records import Reason, SampleError, sample_id
from llava_stf.data.templates import template_of
from llava_stf.errors import CheckpointError, DataError, LlavaStfError
from llava_stf.inference import LlavaStf, Message, user_turn
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN, tokenize_chunks
from llava_stf.models.llava_stf.conversation import ANSWER_TAG, render_chat
from llava_stf.training.label_file import LabelFile


@dataclass
class _Dialogue:
    """One record on its way to a row: what to ask, about which images, and what was answered so far."""

    number: int
    record: Mapping[str, Any]
    questions: list[str]
    images: list[Image.Image] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def is_open(self) -> bool:
        """Whether a question is left."""
        return len(self.answers) < len(self.questions)

    def messages(self) -> list[Message]:
        """All turns so far, and the next question."""
        messages: list[Message] = []
        for question, answer in zip_longest(self._asked(), self.answers):
            markers = question.count(IMAGE_TOKEN)
            messages.append(user_turn(question.replace(IMAGE_TOKEN, "").strip() if markers else question, markers))
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return messages

    def shown(self) -> list[Image.Image]:
        """The images of all turns so far."""
        return self.images[: sum(question.count(IMAGE_TOKEN) for question in self._asked())]

    def row(self, answers: Sequence[str]) -> dict[str, Any]:
        """The record in LLaVA's form with these answers in place of its own; other fields of it stay."""
        turns = [
            {"from": speaker, "value": text}
            for pair in zip(self.questions, answers, strict=True)
            for speaker, text in zip(("human", "gpt"), pair, strict=True)
        ]
        name = self.record.get("id")
        others = {field: value for field, value in self.record.items() if field not in ("id", "messages")}
        return {"id": str(self.number) if name in (None, "") else name, **others, "conversations": turns}

    def _asked(self) -> list[str]:
        return self.questions[: len(self.answers) + 1]


class Labeller:
    """Asks a model all open questions of a file, batch by batch.

    Args:
        llava: who answers, greedily.
        questions: what is asked.
        labels: where the rows go.
        images: folder that image paths start from.
        batch_size: records that are asked together.
        max_new_tokens: longest answer.
        max_bad_samples: largest share of records that cannot be asked, see `BadSamples`.

    Attributes:
        bad_samples: the verdicts on the records.
        unanswered: how many of the others have no row, since an answer is empty or makes the row useless.

    Raises:
        CheckpointError: the model has no tokenizer.
    """

    def __init__(
        self,
        llava: LlavaStf,
        questions: Questions,
        labels: LabelFile,
        *,
        images: Path,
        batch_size: int,
        max_new_tokens: int,
        max_bad_samples: float = 0.01,
    ) -> None:
        if llava.processor is None:
            raise CheckpointError("This checkpoint came without a tokenizer, so it cannot be asked in words.")
        self.llava, self.processor = llava, llava.processor
        self.questions = questions
        self.labels = labels
        self.prepare = Preparation(
            self.processor,
            name=questions.name,
            images=images,
            template=template_of(self.processor),
            max_length=sys.maxsize,
        )
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.bad_samples = BadSamples(len(questions), max_bad_samples)
        for number in set(labels.numbers).difference(labels.open):
            self.bad_samples.add_good(number)
        self.unanswered = 0

    def run(self) -> Iterator[int]:
        """Yields how many of the open questions are done after each batch, once its rows are on the disk.

        A record that cannot be asked is left out, with a warning.

        Raises:
            DataError: too many are, or the rows cannot be written.
        """
        numbers = list(self.labels.open)
        for start in range(0, len(numbers), self.batch_size):
            batch = numbers[start : start + self.batch_size]
            dialogues, rows = [], []
            for number in batch:
                with self._leaving_out(number):
                    dialogues.append(self._dialogue(number))
            self._ask(dialogues)
            for dialogue in dialogues:
                with self._leaving_out(dialogue.number):
                    if (row := self._row(dialogue)) is not None:
                        rows.append(row)
                    self.bad_samples.add_good(dialogue.number)
            self.labels.append(rows)
            yield start + len(batch)

    @contextmanager
    def _leaving_out(self, number: int) -> Iterator[None]:
        try:
            yield
        except SampleError as error:
            self.bad_samples.add_bad(number, error)

    def _dialogue(self, number: int) -> _Dialogue:
        try:
            record = self.questions[number]
        except DataError as error:
            raise self._error("no record", {}, number, str(error)) from error
        try:
            questions = human_turns(record)
        except DataError as error:
            raise self._error("turn order", record, number, str(error)) from error
        dialogue = _Dialogue(number, record, questions)
        if not self._is_trainable(dialogue.row(["?"] * len(questions)), number):
            raise self._error("turn order", record, number, f"a question holds the text {ANSWER_TAG.strip()}")
        dialogue.images = self.prepare.load(record, number)
        return dialogue

    @torch.inference_mode()
    def _ask(self, dialogues: Sequence[_Dialogue]) -> None:
        """Answers all questions of these dialogues, the first ones together, then the second ones, and so on.

        One whose next prompt and a longest answer do not fit the model's positions is asked no further.
        """
        while waiting := [dialogue for dialogue in dialogues if dialogue.is_open() and self._fits(dialogue)]:
            try:
                answers = self.llava.reply_batch(
                    [dialogue.messages() for dialogue in waiting],
                    [dialogue.shown() for dialogue in waiting],
                    max_new_tokens=self.max_new_tokens,
                )
            except torch.OutOfMemoryError as error:
                raise LlavaStfError(
                    f"The GPU has no room for {len(waiting)} questions at once: the same command with a smaller batch "
                    "size goes on from here."
                ) from error
            for dialogue, answer in zip(waiting, answers, strict=True):
                dialogue.answers.append(answer)

    def _prompt(self, dialogue: _Dialogue) -> str:
        return render_chat(self.processor, dialogue.messages())

    def _fits(self, dialogue: _Dialogue) -> bool:
        image_id = self.prepare.image_token_id
        ids = tokenize_chunks(self.processor.tokenizer, self._prompt(dialogue), image_token_id=image_id)
        length = len(ids) - ids.count(image_id) + sum(self.prepare.tokens_of(dialogue.shown()))
        return length + self.max_new_tokens <= self.llava.positions

    def _row(self, dialogue: _Dialogue) -> dict[str, Any] | None:
        """The finished row; none if an answer is empty or makes the row useless."""
        asked, number = len(dialogue.answers), dialogue.number
        if asked < len(dialogue.questions):
            sentence = (
                f"question {asked + 1} and {self.max_new_tokens} tokens of answer do not fit the model's "
                f"{self.llava.positions} positions"
            )
            raise self._error("too long", dialogue.record, number, sentence)
        row = dialogue.row(dialogue.answers)
        if all(dialogue.answers) and self._is_trainable(row, number):
            return row
        self.unanswered += 1
        return None

    def _is_trainable(self, row: Mapping[str, Any], number: int) -> bool:
        """Whether training has something to learn from the row. Raises `SampleError` if it could not even read it."""
        try:
            self.prepare.encode(row, number)
        except SampleError as error:
            if error.reason == "no target":
                return False
            raise
        return True

    def _error(self, reason: Reason, record: Mapping[str, Any], number: int, sentence: str) -> SampleError:
        name = sample_id(record, number)
        return SampleError(reason, name, f"sample {name} of {self.questions.name} (number {number}): {sentence}")
