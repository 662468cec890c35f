"""Exercises on option letters in text alone, for a language model that will see images later.

A language model without pre-training does not learn by itself to answer with the letter of an option. The exercises
lead there in steps that each add one thing to the one before: first a letter stands directly behind the word that was
asked for and the word behind its letter, in the end a chat's turn lies between question, options and letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llava_stf.models.llava_stf.conversation import END
from llava_stf.world.choices import CHINESE, LETTERS, PROPERTIES
from llava_stf.world.questions import pick
from llava_stf.world.scene import COLOURS, PLACES, SHAPES, WORDS

TRANSLATED = (tuple(COLOURS), SHAPES, PLACES)
NAMES = (*TRANSLATED, WORDS, tuple("12345"))
OF_ONE_KIND = 0.8  # of the lists of options, as in the questions
QUESTIONS_PER_LIST = 6
RULES_PER_CHAT = 4


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


def letter_pairs(rng: np.random.Generator) -> Exercise:
    """Two to four options, then pairs: the letter behind an option ("red B"), or the option behind its letter."""
    options = _options(rng)
    parts = [(_listed(options) + "\n", False)]
    for _ in range(QUESTIONS_PER_LIST):
        number = int(rng.integers(len(options)))
        pair = [options[number], LETTERS[number]]
        if rng.random() < 0.5:
            pair.reverse()
        parts += [(pair[0], False), (f" {pair[1]}", True), ("\n", False)]
    return Exercise.of(parts)


def options_first(rng: np.random.Generator) -> Exercise:
    """Two to four options, then turns of a chat that ask for the letter of one of them."""
    options = _options(rng)
    parts = [(_listed(options) + "\n", False)]
    for _ in range(QUESTIONS_PER_LIST):
        number = int(rng.integers(len(options)))
        parts += [(f"USER: Which is {options[number]}? ASSISTANT:", False), (f" {LETTERS[number]}{END}", True)]
    return Exercise.of(parts)


def options_last(
    rng: np.random.Generator, *, repeated: bool = False, translated: bool = False, turns: int = 1
) -> Exercise:
    """Turns of a chat with the question before its options, as benchmarks ask.

    `repeated` also asks behind them in short ("red?"); `translated` asks in English for one of Chinese options, or the
    other way round.
    """
    parts: list[tuple[str, bool]] = []
    for _ in range(turns):
        options = _options(rng, TRANSLATED if translated else NAMES)
        number = int(rng.integers(len(options)))
        asked = options[number]
        if translated and rng.random() < 0.5:
            asked = CHINESE[asked]
        elif translated:
            options = [CHINESE[option] for option in options]
        text = f"Which is {asked}?\n{_listed(options)}" + f"\n{asked}?" * repeated
        parts += [(f"USER: {text} ASSISTANT:", False), (f" {LETTERS[number]}{END}", True)]
    return Exercise.of(parts)


def rules(rng: np.random.Generator) -> Exercise:
    """Turns of a chat that ask what a context says of a colour or a shape, by letter or in words."""
    parts: list[tuple[str, bool]] = []
    for _ in range(RULES_PER_CHAT):
        names = rng.permutation(list(COLOURS) if rng.random() < 0.5 else SHAPES)[:2].tolist()
        properties = rng.permutation(pick(rng, PROPERTIES)).tolist()
        asked = int(rng.integers(2))
        text = f"Context: {names[0]} is {properties[0]}, {names[1]} is {properties[1]}.\nWhat is {names[asked]}?"
        answer = properties[asked]
        if rng.random() < 0.6:
            options = rng.permutation(properties).tolist()
            text += f"\n{_listed(options)}"
            answer = LETTERS[options.index(answer)]
        parts += [(f"USER: {text} ASSISTANT:", False), (f" {answer}{END}", True)]
    return Exercise.of(parts)


def _options(rng: np.random.Generator, kinds: Sequence[Sequence[str]] = NAMES) -> list[str]:
    names = pick(rng, kinds) if rng.random() < OF_ONE_KIND else [name for kind in kinds for name in kind]
    return [str(name) for name in rng.permutation(names)[: int(rng.integers(2, len(LETTERS) + 1))]]


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
