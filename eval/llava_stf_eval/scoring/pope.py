"""POPE: a lenient reading of yes and no, and the F1 of each of its three kinds of negatives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CATEGORIES = ("adversarial", "popular", "random")


def yes_or_no(answer: str) -> str:
    """Answer "no" if one of the words No, no or not stands before the first period, commas aside; else "yes"."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def f1_score(pairs: Iterable[tuple[str, str]]) -> float:
    """F1 from 0 to 1 of (prediction, truth) pairs with "yes" as the positive class; 0 without a true positive."""
    pairs = list(pairs)
    right = sum(prediction == truth == "yes" for prediction, truth in pairs)
    claimed = sum(prediction == "yes" for prediction, _ in pairs)
    real = sum(truth == "yes" for _, truth in pairs)
    return 2 * right / (claimed + real) if right else 0.0


def mean_f1(records: Sequence[tuple[str, str, str]]) -> float:
    """Mean over the categories of the F1 of (category, prediction, truth) records: all three, or those that are there.

    Every category weighs the same, whatever its number of questions.
    """
    present = [category for category in CATEGORIES if any(record[0] == category for record in records)]
    scores = [
        f1_score((prediction, truth) for kind, prediction, truth in records if kind == category) for category in present
    ]
    return sum(scores) / len(scores) if scores else 0.0
