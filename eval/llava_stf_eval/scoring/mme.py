"""MME: accuracy of single questions plus accuracy of whole pairs, summed over categories."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from llava_stf.errors import DataError

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def yes_no_other(answer: str) -> str:
    """What the answer's first four characters hold, in any case, "yes" or "no"; otherwise "other"."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def category_scores(answers: Iterable[tuple[str, str, bool]]) -> dict[str, float]:
    """Score of each category, at most 200, from (category, question id, is right): 100 * (single + pairs).

    A question id names one image and has two questions.

    Raises:
        DataError: it has another number.
    """
    right: defaultdict[str, defaultdict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for category, question_id, is_right in answers:
        right[category][question_id].append(is_right)
    scores = {}
    for category, pairs in right.items():
        for question_id, pair in pairs.items():
            if len(pair) != 2:
                raise DataError(
                    f"MME scores pairs: expected 2 questions of {question_id!r} in category {category!r}, found "
                    f"{len(pair)}; give an even limit or the whole data set."
                )
        single = sum(map(sum, pairs.values())) / (2 * len(pairs))
        scores[category] = 100 * (single + sum(map(all, pairs.values())) / len(pairs))
    return scores
