"""ScienceQA and MMBench: which option an answer names, and MMBench's question that must survive every rotation."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LETTERS = "ABCDE"
ROTATION = 1_000_000  # row index of rotation k of question i: i + k * ROTATION
# The period is any character in LLaVA's own script, so "The answer is B, ..." counts too.
SCIENCE_PHRASE = re.compile(r"The answer is ([A-Z]).")
# What may stand around a letter that is a word of its own, in the order in which MMBench looks.
WRAPS = (
    ("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip
WORDS_OF_A_SENTENCE = 4  # from so many words on a bare "A" may be the article


@dataclass(frozen=True)
class ChoiceAnswer:
    """One answered MMBench row: its index, the answer, the right letter, and the options by letter."""

    index: int
    prediction: str
    answer: str
    options: Mapping[str, str]


def science_letter(answer: str, options: int) -> str | None:
    """The letter of a ScienceQA answer with this many options; None where there is none, which is wrong.

    A bare letter, a letter followed by ". " at the start, or the only "The answer is X." in the text.
    """
    if answer in LETTERS and len(answer) == 1:
        letter = answer
    elif answer[:1] in LETTERS and answer[1:3] == ". ":
        letter = answer[0]
    else:
        found = SCIENCE_PHRASE.findall(answer)
        letter = found[0] if len(found) == 1 else ""
    return letter if letter and letter in LETTERS[:options] else None


def option_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an MMBench answer names without a judge: its only letter, or the only option text it holds."""
    words = answer.split()
    for before, behind in WRAPS:
        letters = [letter for letter in LETTERS if f"{before}{letter}{behind}" in words]
        article = not before and not behind and letters == ["A"] and len(words) >= WORDS_OF_A_SENTENCE
        if len(letters) == 1 and not article:
            return letters[0]
    held = [letter for letter, text in options.items() if str(text).lower() in answer.lower()]
    return held[0] if len(held) == 1 else None


def is_absent(value: Any) -> bool:
    """Whether a cell of MMBench's table is empty: null, not a number, "nan" or "none"."""
    return value is None or value != value or str(value).lower() in ("nan", "none")


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The options A to D of an MMBench row, up to the first that is missing."""
    options: dict[str, str] = {}
    for letter in "ABCD":
        if is_absent(row.get(letter)):
            break
        options[letter] = str(row[letter])
    return options


def circular_accuracy(rows: Iterable[ChoiceAnswer]) -> float:
    """Share of questions, from 0 to 1, of which every rotation is answered with the right letter."""
    right: defaultdict[int, list[bool]] = defaultdict(list)
    for row in rows:
        right[row.index % ROTATION].append(option_letter(row.prediction, row.options) == row.answer)
    return sum(map(all, right.values())) / len(right) if right else 0.0
