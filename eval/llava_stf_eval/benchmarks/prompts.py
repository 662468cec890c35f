"""Questions without the benchmarks' instructions, for models that were trained on bare questions: the bundled ones."""

from __future__ import annotations

_INSTRUCTIONS = (
    "Answer the question using a single word or phrase.",
    "Answer the question with a single word.",
    "Answer with the option's letter from the given choices directly.",
    "When the provided information is insufficient, respond with 'Unanswerable'.",
    "请直接回答选项字母。",
    "请直接使用所提供的选项字母作为答案回答。",
    "Reference OCR token:",
)


def without_instructions(text: str) -> str:
    """The prompt without the lines that say how to answer or what an OCR tool has read, blank lines included."""
    lines = (line for line in text.split("\n") if line.strip())
    return "\n".join(line for line in lines if not line.startswith(_INSTRUCTIONS))
