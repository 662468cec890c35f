"""What the bundled model's language model learns from text, in which order, and when it goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from llava_stf.world.exercises import Exercise, letter_drill, lettered_fact, options_last, told

logger = logging.getLogger(__name__)
WARMUP_STEPS = 50
WINDOW = 600  # answers


@dataclass(frozen=True)
class Lesson:
    """Exercises of one kind, for at most `steps` steps.

    `goal` is the share of right answers in the last `WINDOW` that ends the lesson early, `share` the part of a batch
    that is of this lesson and not of earlier ones. With `fades` the learning rate falls to zero over the steps.
    Exercises that are not `rehearsed` do not come again: they are a step on the way, and the next lesson asks the same
    and wants another answer.
    """

    name: str
    draw: Callable[[np.random.Generator], Exercise]
    steps: int
    goal: float = 0.85
    learning_rate: float = 1e-3
    batch_size: int = 16
    share: float = 0.6
    rehearsed: bool = True
    fades: bool = False


COURSE = (
    Lesson("word", partial(letter_drill, form="word"), 2500, goal=0.95),
    Lesson("question", partial(letter_drill, form="question"), 2000, goal=0.95),
    Lesson("sentence", partial(letter_drill, form="sentence"), 1000),
    Lesson("turn", partial(letter_drill, form="turn"), 1000),
    Lesson("spoken", partial(options_last, spoken=1.0), 1500, rehearsed=False),
    Lesson("spoken or not", partial(options_last, spoken=0.25), 500, goal=0.9, rehearsed=False),
    Lesson("options last", options_last, 2000, goal=0.9),
    Lesson("one fact", lettered_fact, 3000, goal=0.9),
    Lesson("two facts", partial(lettered_fact, max_objects=2), 3000, goal=0.9),
    Lesson("told", told, 6000, goal=1.01, batch_size=8, share=1.0, fades=True),
)


@dataclass
class Progress:
    """Where a run stands: all that decides what comes next, beside weights and optimizer."""

    step: int = 0
    lesson: int = 0
    step_in_lesson: int = 0
    recent: list[bool] = field(default_factory=list)  # whether the newest exercises' last answers were right

    @property
    def share_right(self) -> float:
        """Of the last answers to the newest exercises, at most `WINDOW`."""
        return sum(self.recent) / max(1, len(self.recent))

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint, which `Progress(**state)` takes back."""
        return asdict(self)

    def advance(self, lesson: Lesson, right: Sequence[bool]) -> None:
        """Count a step that answered the newest exercises so; go on to the next lesson where this one is over."""
        self.recent = [*self.recent, *right][-WINDOW:]
        self.step += 1
        self.step_in_lesson += 1
        learned = len(self.recent) == WINDOW and self.share_right >= lesson.goal
        if learned or self.step_in_lesson >= lesson.steps:
            logger.info("%s: %.3f right after %d steps", lesson.name, self.share_right, self.step_in_lesson)
            self.lesson, self.step_in_lesson, self.recent = self.lesson + 1, 0, []


def draw_exercises(course: Sequence[Lesson], progress: Progress, seed: int) -> list[tuple[Exercise, bool]]:
    """The exercises of a step, each with whether it is of the newest lesson: a function of seed, step and lesson."""
    rng = np.random.default_rng([seed, progress.step])
    newest = course[progress.lesson]
    earlier = [lesson for lesson in course[: progress.lesson] if lesson.rehearsed]
    chosen = [
        newest if not earlier or rng.random() < newest.share else earlier[int(rng.integers(len(earlier)))]
        for _ in range(newest.batch_size)
    ]
    return [(lesson.draw(rng), lesson is newest) for lesson in chosen]


def learning_rate(lesson: Lesson, progress: Progress) -> float:
    """That of the next step."""
    warmup = min(1.0, (progress.step + 1) / WARMUP_STEPS)
    left = 1 - progress.step_in_lesson / lesson.steps if lesson.fades else 1.0
    return lesson.learning_rate * warmup * left
