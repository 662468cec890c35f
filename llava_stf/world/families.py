"""All eight families by name, the choice of questions for one image, and its caption."""

from collections.abc import Callable, Sequence

import numpy as np

from llava_stf.world.choices import ask_choice, ask_choice_cn, ask_science
from llava_stf.world.questions import WHERE, Question, ask_open, ask_poor, ask_presence, ask_relation, ask_text
from llava_stf.world.scene import Scene

FAMILIES: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "open": ask_open,
    "relation": ask_relation,
    "poor": ask_poor,
    "science": ask_science,
    "text": ask_text,
    "presence": ask_presence,
    "choice": ask_choice,
    "choice_cn": ask_choice_cn,
}
ALL = tuple(FAMILIES)
LETTERED = ("science", "choice", "choice_cn")  # answered by the letter of an option
BENCHMARKS = {
    "open": "VQAv2", "relation": "GQA", "poor": "VizWiz", "science": "ScienceQA",
    "text": "TextVQA", "presence": "POPE", "choice": "MMBench", "choice_cn": "MMBench-CN",
}  # fmt: skip


def ask(
    scene: Scene, rng: np.random.Generator, *, families: Sequence[str] = ALL, count: int = len(ALL)
) -> list[Question]:
    """At most `count` questions in random order, no text twice: families in turn, each as often as the others.

    A degraded image gets one question of the family "poor", or none where that family is not asked for.
    """
    if scene.degraded:
        only = ask_poor(scene, rng) if "poor" in families else None
        return [only] if only is not None else []
    turns = [family for _ in range(-(-count // len(families))) for family in rng.permutation(families).tolist()]
    asked: dict[str, Question] = {}
    for family in turns[:count]:
        question = FAMILIES[family](scene, rng)
        if question is not None:
            asked.setdefault(question.text, question)
    questions = list(asked.values())
    return [questions[index] for index in rng.permutation(len(questions))]


def caption(scene: Scene) -> str:
    """Everything in the image in raster order, in one sentence without a capital."""
    if scene.degraded:
        return "a picture too poor to read."
    parts = [
        (thing.place, f"a {thing.size} {thing.colour} {thing.shape} {WHERE[thing.place]}") for thing in scene.objects
    ]
    if scene.text is not None:
        kind = "number" if scene.text.is_number else "word"
        parts.append((scene.text.place, f"the {kind} {scene.text.string} {WHERE[scene.text.place]}"))
    return ", ".join(part for _, part in sorted(parts)) + "."
