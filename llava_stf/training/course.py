"""What the bundled model's language model learns from text, in which order, and when it goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from llava_stf.world.exercises import LETTERED, Exercise, letter_pairs, options_first, options_last, rules, told
from llava_stf.world.families import ALL

logger = logging.getLogger(__name__)
WARMUP_STEPS = 50
WINDOW = 300  # answers
REHEARSED = 0.1  # weight of a lesson whose last answers were all right; that of one that were all wrong is 1 more
OPEN = tuple(family for family in ALL if family not in LETTERED)


@dataclass(frozen=True)
class Lesson:
    """Exercises of one kind, for at most `steps` steps before the next lesson joins them.

    `goal` is the share of right answers in the last `WINDOW` that ends it early. The lessons before are rehearsed, each
    as far as its last answers were wrong, unless the lesson is taken `alone`. With `fades` the learning rate falls to
    zero over the steps.
    """

    name: str
    draw: Callable[[np.random.Generator], Exercise]
    steps: int
    goal: float = 0.95
    learning_rate: float = 1e-3
    batch_size: int = 8
    alone: bool = False
    fades: bool = False


COURSE = (
    Lesson("letter pairs", letter_pairs, 2000, goal=0.97),
    Lesson("options first", options_first, 1500),
    Lesson("options last, repeated", partial(options_last, repeated=True, turns=3), 1500),
    Lesson("options last", partial(options_last, turns=3), 2000),
    Lesson("options last, translated", partial(options_last, translated=True, turns=3), 1500, goal=0.9),
    Lesson("rules", rules, 1500, goal=0.9),
    Lesson("open, one object", partial(told, families=OPEN, max_objects=1), 2500, goal=0.9),
    Lesson("lettered, one object", partial(told, families=LETTERED, max_objects=1, count=3), 4000, goal=0.9),
    Lesson("told, two objects", partial(told, max_objects=2, count=4), 2500, goal=0.9),
    Lesson("told", partial(told, count=4), 4000, goal=1.01, alone=True, fades=True),
)


@dataclass
class Progress:
    """Where a run stands: all that decides what comes next, beside weights and optimizer."""

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

    def count(self, lessons: Sequence[int], right: Sequence[bool]) -> None:
        """Count a step that answered questions of `lessons` so."""
        for number, answer in zip(lessons, right, strict=True):
            self.recent[number].append(answer)
        self.recent = [answers[-WINDOW:] for answers in self.recent]
        self.step += 1
        self.step_in_lesson += 1

    def advance(self, lesson: Lesson, lessons: Sequence[int], right: Sequence[bool]) -> None:
        """Count a step of the newest lesson, and go on to the next where it is over."""
        self.count(lessons, right)
        share = self.share_right(self.lesson)
        learned = len(self.recent[self.lesson]) == WINDOW and share >= lesson.goal
        if learned or self.step_in_lesson >= lesson.steps:
            logger.info("%s: %.3f right after %d steps", lesson.name, share, self.step_in_lesson)
            self.lesson, self.step_in_lesson = self.lesson + 1, 0
            self.recent.append([])


def draw_exercises(course: Sequence[Lesson], progress: Progress, seed: int) -> list[tuple[Exercise, int]]:
    """The exercises of a step, each with the number of its lesson: a function of seed and progress.

    When the course is over all its lessons are rehearsed.
    """
    rng = np.random.default_rng([seed, progress.step])
    begun = min(progress.lesson + 1, len(course))
    newest = course[begun - 1]
    weights = np.array([REHEARSED + 1 - progress.share_right(number) for number in range(begun)])
    if newest.alone:
        weights[:-1] = 0
    chosen = rng.choice(len(weights), newest.batch_size, p=weights / weights.sum())
    return [(course[number].draw(rng), int(number)) for number in chosen]


def learning_rate(lesson: Lesson, progress: Progress) -> float:
    """That of the next step."""
    warmup = min(1.0, (progress.step + 1) / WARMUP_STEPS)
    left = 1 - progress.step_in_lesson / lesson.steps if lesson.fades else 1.0
    return lesson.learning_rate * warmup * left
