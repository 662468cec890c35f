"""Question texts of LLaVA's own scripts where lmms-eval's differ, from a row and the task's `default` block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_stf_eval.scoring.choices import LETTERS, is_absent, options_of

Row = Mapping[str, Any]


def scienceqa(doc: Row, lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Context ("N/A" when empty), question, and all options on one line as "(A) ... (B) ...", then the post prompt."""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, doc["choices"], strict=False))
    text = f"Context: {doc['hint'].strip() or 'N/A'}\nQuestion: {doc['question']}\nOptions: {options}"
    return text.replace("  ", " ").strip() + lmms_eval_specific_kwargs["post_prompt"]


def mmbench(doc: Row, lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """The hint on a line of its own if there is one, the question, one option per line, then the post prompt."""
    lines = [] if is_absent(doc["hint"]) else [doc["hint"]]
    lines += [doc["question"], *(f"{letter}. {option}" for letter, option in options_of(doc).items())]
    return "\n".join(lines) + lmms_eval_specific_kwargs["post_prompt"]
