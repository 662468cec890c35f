"""Exercises in text alone, for a language model that will see images later: option letters, then images told in words.

A language model without pre-training does not learn by itself to answer with the letter of an option. The forms of
`DRILLS` lead there in steps that each add one thing to the one before: first the letter stands directly behind the word
that was asked for, in the end a chat's turn lies between question, options and letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llava_stf.models.llava_stf.conversation import END, render_v1
from llava_stf.world.choices import LETTERS, ask_choice, ask_choice_cn, ask_science
from llava_stf.world.families import ALL, ask, caption
from llava_stf.world.questions import Question
from llava_stf.world.scene import COLOURS, SHAPES, Scene, sample_scene

NAMES = (*COLOURS, *SHAPES)
QUESTIONS_PER_LIST = 6
# What stands before the asked word, between it and the letter, and behind the letter.
DRILLS = {
    "word": ("", "", "\n"),
    "question": ("", "?", "\n"),
    "sentence": ("Which is ", "?", "\n"),
    "turn": ("USER: Which is ", "? ASSISTANT:", END),
}


@dataclass(frozen=True)
class Exercise:
    """A text and its answers, each as the range of characters [start, end) that is to be learned."""

    text: str
    answers: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, parts: Iterable[tuple[str, bool]]) -> Exercise:
        """The parts (text, whether it is an answer) in a row."""
        text, answers = "", []
        for part, is_answer in parts:
            if is_answer:
                answers.append((len(text), len(text) + len(part)))
            text += part
        return cls(text, tuple(answers))


def letter_drill(rng: np.random.Generator, form: str) -> Exercise:
    """Two to four options, then questions for the letter of one of them, in one of the forms of `DRILLS`."""
    options = _options(rng)
    before, between, behind = DRILLS[form]
    parts = [(_listed(options) + "\n", False)]
    for _ in range(QUESTIONS_PER_LIST):
        number = int(rng.integers(len(options)))
        parts += [(before + options[number] + between, False), (f" {LETTERS[number]}", True), (behind, False)]
    return Exercise.of(parts)


def options_last(rng: np.random.Generator, *, spoken: float = 0.0) -> Exercise:
    """The question before its options, as benchmarks ask; the answer is a letter.

    With probability `spoken` the option's words stand before it, so that the place of the answer learns to know them.
    """
    options = _options(rng)
    number = int(rng.integers(len(options)))
    text = f"Which is {options[number]}?\n{_listed(options)}"
    return _asked(text, options[number] if rng.random() < spoken else None, LETTERS[number])


def lettered_fact(rng: np.random.Generator, *, max_objects: int = 1) -> Exercise:
    """A caption and one question with options from the three families that have any, without the chat's first words."""
    while True:
        scene = sample_scene(rng, max_objects=max_objects)
        family = (ask_science, ask_choice, ask_choice_cn)[int(rng.integers(3))]
        question = None if scene.degraded else family(scene, rng)
        if question is not None:
            return _asked(f"{caption(scene)}\n{question.text}", None, question.answer)


def told(rng: np.random.Generator, *, families: Sequence[str] = ALL, max_objects: int = 4, count: int = 8) -> Exercise:
    """A whole conversation as it is trained and asked with an image, the caption standing where the image will be."""
    while True:
        scene = sample_scene(rng, max_objects=max_objects)
        questions = ask(scene, rng, families=families, count=count)
        if questions:
            return conversation(scene, questions)


def conversation(scene: Scene, questions: Sequence[Question]) -> Exercise:
    """The v1 conversation that asks these questions about the scene's caption."""
    turns: list[tuple[str, str]] = []
    parts: list[tuple[str, bool]] = []
    for number, question in enumerate(questions):
        asked = question.text if number else f"{caption(scene)}\n{question.text}"
        text = render_v1([*turns, ("human", asked), ("gpt", "")])
        parts += [(text[sum(len(part) for part, _ in parts) :], False), (f" {question.answer}{END}", True)]
        turns += [("human", asked), ("gpt", question.answer)]
    return Exercise.of(parts)


def _options(rng: np.random.Generator) -> list[str]:
    return [str(name) for name in rng.permutation(NAMES)[: int(rng.integers(2, len(LETTERS) + 1))]]


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def _asked(text: str, words: str | None, letter: str) -> Exercise:
    answers = [(f" {words}", True)] if words is not None else []
    return Exercise.of([(f"USER: {text} ASSISTANT:", False), *answers, (f" {letter}{END}", True)])
