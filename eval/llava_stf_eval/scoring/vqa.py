"""VQAv2, VizWiz, TextVQA and GQA: how a short free answer is normalised and compared with what people answered.

The normaliser itself is lmms-eval's copy of EvalAI's: the same three steps and tables as in LLaVA's own scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from llava_stf.errors import DataError
from llava_stf_eval.requirements import lmms_eval_file

TEXTVQA_REFERENCES = 10
AGREEING = 3  # people who must have given an answer for it to be fully right


def normalise_answer(answer: str) -> str:
    """The answer as EvalAI compares it: lower case, no punctuation or articles, digits for number words.

    Commas and question marks go first and `'s` becomes a word of its own. Every other mark is deleted where it touches
    a space anywhere in the text and becomes a space elsewhere; a period stays before a digit only; contractions get
    their apostrophe back.
    """
    return _processor()(answer)


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Mean over the references, each left out once, of min(1, equal ones among the others / 3)."""
    if not references:
        raise DataError("A question has no reference answers, so its answer cannot be scored.")
    equal = sum(reference == answer for reference in references)
    scores = [min(1.0, (equal - (reference == answer)) / AGREEING) for reference in references]
    return sum(scores) / len(scores)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """What EvalAI gives the answer that LLaVA submits to VQAv2 and VizWiz, from 0 to 1.

    The answer is normalised before it is submitted; the server then treats it and the references alike, but without the
    normaliser's first step.
    """
    return soft_accuracy(_server_form(normalise_answer(answer)), [_server_form(reference) for reference in references])


def textvqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """TextVQA's accuracy of an answer against exactly ten references, all normalised, from 0 to 1."""
    if len(references) != TEXTVQA_REFERENCES:
        raise DataError(f"TextVQA scores against {TEXTVQA_REFERENCES} reference answers, found {len(references)}.")
    return soft_accuracy(normalise_answer(answer), [normalise_answer(reference) for reference in references])


def gqa_accuracy(answer: str, reference: str) -> float:
    """1 where the answer, in lower case and without closing periods, equals the reference, else 0."""
    return float(answer.rstrip(".").lower() == reference)


def _server_form(text: str) -> str:
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _processor().process_digit_article(_processor().process_punctuation(text))


@cache
def _processor() -> Any:
    return lmms_eval_file("tasks/_task_utils/vqa_eval_metric.py").EvalAIAnswerProcessor()
