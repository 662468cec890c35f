"""The lessons on option letters, in text alone: their order, when one ends, and the loss of a batch of exercises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaModel, PreTrainedTokenizerBase

from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.training.drawn_batches import LENGTH_STEP
from llava_stf.training.rows import Rows, embed, last_states, logits_of
from llava_stf.world.exercises import Exercise, letter_pairs, options_first, options_last, rules

logger = logging.getLogger(__name__)
WINDOW = 300  # answers
REHEARSED = 0.1  # weight of a lesson whose last answers were all right; that of one that were all wrong is 1 more
BATCH_SIZE = 8


@dataclass(frozen=True)
class Lesson:
    """Exercises of one kind, for at most `steps` steps before the next lesson joins them.

    `goal` is the share of right answers in the last `WINDOW` that ends it early. The lessons before are rehearsed, each
    as far as its last answers were wrong.
    """

    name: str
    draw: Callable[[np.random.Generator], Exercise]
    steps: int
    goal: float = 0.95


COURSE = (
    Lesson("letter pairs", letter_pairs, 2000, goal=0.97),
    Lesson("options first", options_first, 1500),
    Lesson("options last, repeated", partial(options_last, repeated=True, turns=3), 1500),
    Lesson("options last", partial(options_last, turns=3), 2000),
    Lesson("options last, translated", partial(options_last, translated=True, turns=3), 1500, goal=0.9),
    Lesson("rules", rules, 1500, goal=0.9),
)


@dataclass
class Progress:
    """Where a run stands in a course: all that decides which exercises come next, beside a seed."""

    step: int = 0
    lesson: int = 0
    step_in_lesson: int = 0
    recent: list[list[bool]] = field(default_factory=lambda: [[]])  # per lesson, whether its last answers were right

    def share_right(self, lesson: int) -> float:
        """Of the last answers to a lesson's exercises, at most `WINDOW`."""
        return sum(self.recent[lesson]) / max(1, len(self.recent[lesson]))

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint, which `Progress(**state)` takes back."""
        return asdict(self)

    def advance(self, course: Sequence[Lesson], lessons: Sequence[int], right: Sequence[bool]) -> None:
        """Count a step that answered exercises of `lessons` so, and go on where the newest lesson is over."""
        for number, answer in zip(lessons, right, strict=True):
            self.recent[number].append(answer)
        self.recent = [answers[-WINDOW:] for answers in self.recent]
        self.step += 1
        self.step_in_lesson += 1
        if self.lesson == len(course):
            return
        newest, share = course[self.lesson], self.share_right(self.lesson)
        learned = len(self.recent[self.lesson]) == WINDOW and share >= newest.goal
        if learned or self.step_in_lesson >= newest.steps:
            logger.info("%s: %.3f right after %d steps", newest.name, share, self.step_in_lesson)
            self.lesson, self.step_in_lesson = self.lesson + 1, 0
            self.recent.append([])


def draw_exercises(course: Sequence[Lesson], progress: Progress, seed: int) -> list[tuple[Exercise, int]]:
    """The exercises of a step, each with the number of its lesson: a function of seed and progress.

    When the course is over all its lessons are rehearsed.
    """
    rng = np.random.default_rng([seed, progress.step])
    begun = min(progress.lesson + 1, len(course))
    weights = np.array([REHEARSED + 1 - progress.share_right(number) for number in range(begun)])
    chosen = rng.choice(begun, BATCH_SIZE, p=weights / weights.sum())
    return [(course[number].draw(rng), int(number)) for number in chosen]


def collate(exercises: Sequence[tuple[Exercise, int]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """One batch of exercises, each with the number of its lesson.

    Returns:
        `input_ids` and `attention_mask` [B, L], padded on the right; `answers` [B, L], the number of the answer that a
        token belongs to, over the whole batch, or -100; `lessons` [answers], int64.
    """
    encoded = tokenizer(
        [exercise.text for exercise, _ in exercises],
        return_offsets_mapping=True,
        padding=True,
        padding_side="right",
        pad_to_multiple_of=LENGTH_STEP,
    )
    ids = torch.tensor(encoded["input_ids"])
    answers = torch.full_like(ids, IGNORE_INDEX)
    lessons: list[int] = []
    for row, (exercise, lesson) in enumerate(exercises):
        offsets = np.array(encoded["offset_mapping"][row])
        for start, end in exercise.answers:
            inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            answers[row, torch.from_numpy(inside)] = len(lessons)
            lessons.append(lesson)
    mask = torch.tensor(encoded["attention_mask"])
    return {"input_ids": ids, "attention_mask": mask, "answers": answers, "lessons": torch.tensor(lessons)}


def answer_loss(
    model: LlamaModel, head: nn.Linear, batch: dict[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cross entropy over the answers' tokens, and which answers have all of them right, bool [answers].

    Most tokens are of questions, so only the answers' logits are computed. Rows are padded on the right, where a causal
    model needs no mask.
    """
    count, length = batch["input_ids"].shape
    ids, number = batch["input_ids"].flatten(), batch["answers"].flatten()
    kept = batch["attention_mask"].flatten().bool()
    rows = Rows(model.config, count, 0, [(1, length)], kept, dtype)
    states = last_states(model, embed(model, ids, dtype), rows)
    (learned,) = torch.nonzero(number != IGNORE_INDEX, as_tuple=True)
    logits, target, number = logits_of(model, head, states[learned - 1]), ids[learned], number[learned]
    wrong = torch.zeros(len(batch["lessons"]), dtype=torch.int64)
    wrong.index_add_(0, number, (logits.argmax(-1) != target).long())
    return F.cross_entropy(logits, target), wrong == 0
