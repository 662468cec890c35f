"""The synthetic world's held-out images and questions as rows of the data sets.

Every family of questions mirrors one benchmark; MME's pairs are made here, from the objects of an image, and RefCOCO's
boxes are theirs. OCRBench and DocVQA ask for the text of an image, ChartQA for what is counted in it. An image that is
too poor to read is asked about in VizWiz only.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_stf.world import COLOURS, SHAPES, Question, Scene, draw, questions_of
from llava_stf.world.choices import LETTERS
from llava_stf.world.dataset import generator
from llava_stf.world.questions import DIRECTIONS, OPPOSITE, ask_presence, name, pick
from llava_stf_eval.scoring.choices import ROTATION
from llava_stf_eval.scoring.pope import CATEGORIES

SPLIT = "held_out"
# Random streams of an image behind those of the scene (0) and its questions (1).
PRESENCE_PART, PAIRS_PART, BOXES_PART = 2, 3, 4
PRESENCE_DRAWS = 24  # enough for a yes and a no of each of POPE's three kinds in nearly every image
ANNOTATORS = 10
YES_OR_NO = " Please answer yes or no."  # closes every MME question

Row = dict[str, Any]
Rows = dict[tuple[str, str], list[Row]]  # by configuration and split, both as the hub names them


@dataclass(frozen=True)
class DrawnImage:
    """A drawn image: its index and scene, its cell in a table (PNG bytes and a path), and a question per family."""

    index: int
    seed: int
    scene: Scene
    cell: dict[str, Any]
    questions: dict[str, Question]

    @property
    def id(self) -> str:
        """The index in six digits."""
        return f"{self.index:06d}"


def drawn_images(count: int, seed: int) -> list[DrawnImage]:
    """The first `count` images of a held-out seed."""
    from PIL import Image

    drawn = []
    for index in range(count):
        scene, pixels = draw(index, seed=seed, split=SPLIT)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        asked = questions_of(scene, index, seed=seed, split=SPLIT)
        cell = {"bytes": file.getvalue(), "path": f"{index:06d}.png"}
        drawn.append(DrawnImage(index, seed, scene, cell, {question.family: question for question in asked}))
    return drawn


def _asked(drawn: list[DrawnImage], family: str) -> Iterator[tuple[DrawnImage, Question]]:
    for image in drawn:
        if family in image.questions:
            yield image, image.questions[family]


def _vqav2(drawn: list[DrawnImage]) -> Rows:
    rows = []
    for image, question in _asked(drawn, "open"):
        answers = [
            {"answer": question.answer, "answer_confidence": "yes", "answer_id": person + 1}
            for person in range(ANNOTATORS)
        ]
        kind = "yes/no" if question.answer in ("yes", "no") else "number" if question.answer.isdigit() else "other"
        rows.append({
            "question_id": 1000 * image.index, "image": image.cell, "question": question.text, "answers": answers,
            "question_type": question.kind, "answer_type": kind, "multiple_choice_answer": question.answer,
            "image_id": image.index,
        })  # fmt: skip
    unanswered = [{**row, "answers": None, "multiple_choice_answer": None} for row in rows]
    return {("default", "validation"): rows, ("default", "test"): unanswered}


def _gqa(drawn: list[DrawnImage]) -> Rows:
    asked = list(_asked(drawn, "relation"))
    rows = [
        {
            "id": f"{image.id}0", "imageId": image.id, "question": question.text, "answer": question.answer,
            "fullAnswer": f"{question.answer.capitalize()}.",
        }
        for image, question in asked
    ]  # fmt: skip
    images = [{"id": image.id, "image": image.cell} for image, _ in asked]
    return {("testdev_balanced_instructions", "testdev"): rows, ("testdev_balanced_images", "testdev"): images}


def _vizwiz(drawn: list[DrawnImage]) -> Rows:
    rows: list[Row] = [
        {
            "question_id": f"VizWiz_val_{image.index:08d}", "image": image.cell, "question": question.text,
            "answers": [question.answer] * ANNOTATORS,
            "category": "unanswerable" if question.answer == "unanswerable" else "other",
        }
        for image, question in _asked(drawn, "poor")
    ]  # fmt: skip
    test = [
        {**row, "question_id": row["question_id"].replace("val", "test"), "answers": None, "category": None}
        for row in rows
    ]
    return {("default", "val"): rows, ("default", "test"): test}


def _scienceqa(drawn: list[DrawnImage]) -> Rows:
    rows = []
    for image, question in _asked(drawn, "science"):
        context, text, *_ = question.text.split("\n")
        rows.append({
            "image": image.cell, "question": text, "choices": list(question.options),
            "answer": LETTERS.index(question.answer), "hint": context.removeprefix("Context: "),
            "task": "closed choice", "grade": "grade1", "subject": "natural science", "topic": "drawn",
            "category": question.kind, "skill": "apply a rule", "lecture": "", "solution": "",
        })  # fmt: skip
    return {("ScienceQA-IMG", "test"): rows}


def _textvqa(drawn: list[DrawnImage]) -> Rows:
    rows = [
        {
            "question_id": image.index, "image_id": image.id, "question": question.text, "image": image.cell,
            "answers": [question.answer] * ANNOTATORS,
            "ocr_tokens": [image.scene.text.string.upper()] if image.scene.text else [],
        }
        for image, question in _asked(drawn, "text")
    ]  # fmt: skip
    return {("default", "validation"): rows}


def _pope(drawn: list[DrawnImage]) -> Rows:
    rows: list[Row] = []
    for image in drawn:
        if image.scene.degraded:
            continue
        rng = generator(SPLIT, image.seed, image.index, PRESENCE_PART)
        draws = [ask_presence(image.scene, rng) for _ in range(PRESENCE_DRAWS)]
        for question in {(question.kind, question.answer): question for question in draws if question}.values():
            rows.append({
                "id": str(len(rows)), "question_id": str(len(rows)), "question": question.text,
                "answer": question.answer, "image_source": image.id, "category": question.kind, "image": image.cell,
            })  # fmt: skip
    splits = {("Full", kind): [row for row in rows if row["category"] == kind] for kind in CATEGORIES}
    return {("default", "test"): rows, **splits}


def _mmbench(drawn: list[DrawnImage], family: str, config: str) -> Rows:
    rows = []
    for image, question in _asked(drawn, family):
        right = LETTERS.index(question.answer)
        for rotation in range(len(question.options)):
            options = question.options[rotation:] + question.options[:rotation]
            rows.append({
                "index": image.index + rotation * ROTATION, "question": question.text.split("\n")[0], "hint": "nan",
                "answer": LETTERS[(right - rotation) % len(options)], **dict(zip(LETTERS, options, strict=True)),
                "category": question.kind, "L2-category": "drawn", "source": "drawn", "comment": "nan", "split": "dev",
                "image": image.cell,
            })  # fmt: skip
    return {(config, "dev"): rows, (config, "test"): [{**row, "answer": "nan", "split": "test"} for row in rows]}


def _mme(drawn: list[DrawnImage]) -> Rows:
    rows = []
    for image in drawn:
        if image.scene.degraded:
            continue
        rng = generator(SPLIT, image.seed, image.index, PAIRS_PART)
        for category, pair in _mme_pairs(image.scene, rng).items():
            for text, answer in zip(pair, ("Yes", "No"), strict=True):
                rows.append({
                    "question_id": f"{category}/{image.id}.png", "question": text + YES_OR_NO, "answer": answer,
                    "category": category, "image": image.cell,
                })  # fmt: skip
    return {("default", "test"): rows}


def _mme_pairs(scene: Scene, rng: np.random.Generator) -> dict[str, tuple[str, str]]:
    """By MME category a question whose answer is yes and one whose answer is no."""
    present = {(thing.colour, thing.shape) for thing in scene.objects}
    thing = pick(rng, scene.objects)
    absent = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in present]
    recoloured = [(colour, shape) for colour, shape in absent if shape == thing.shape]
    there = _is_there(thing.colour, thing.shape)
    pairs = {
        "existence": (there, _is_there(*pick(rng, absent))),
        "color": (there, _is_there(*pick(rng, recoloured))),
    }
    named = [(thing, label) for thing in scene.objects if (label := name(thing, scene, rng)) is not None]
    related = [
        (direction, label, other_label)
        for one, label in named
        for other, other_label in named
        for direction, holds in DIRECTIONS.items()
        if holds(one, other)
    ]
    if related:
        direction, label, other = pick(rng, related)
        pairs["position"] = (
            f"Is the {label} {direction} the {other}?",
            f"Is the {label} {OPPOSITE[direction]} the {other}?",
        )
    return pairs


def _is_there(colour: str, shape: str) -> str:
    return f"Is there {'an' if colour == 'orange' else 'a'} {colour} {shape}?"


def _ocrbench(drawn: list[DrawnImage]) -> Rows:
    rows = [
        {
            "dataset": "drawn", "question": question.text, "answer": [question.answer], "image": image.cell,
            "question_type": "Digit String Recognition" if question.kind == "number" else "Regular Text Recognition",
        }
        for image, question in _asked(drawn, "text")
    ]  # fmt: skip
    return {("default", "test"): rows}


def _docvqa(drawn: list[DrawnImage]) -> Rows:
    rows = [
        {
            "questionId": str(image.index), "question": question.text, "question_types": [question.kind],
            "image": image.cell, "docId": image.index, "ucsf_document_id": image.id, "ucsf_document_page_no": "1",
            "answers": [question.answer], "data_split": "val",
        }
        for image, question in _asked(drawn, "text")
    ]  # fmt: skip
    return {("DocVQA", "validation"): rows}


def _chartqa(drawn: list[DrawnImage]) -> Rows:
    rows = [
        {
            "type": "human_test" if question.kind == "count" else "augmented_test", "question": question.text,
            "answer": question.answer, "image": image.cell,
        }
        for image, question in _asked(drawn, "open")
    ]  # fmt: skip
    return {("default", "test"): rows}


def _refcoco(drawn: list[DrawnImage]) -> Rows:
    rows: list[Row] = []
    for image in drawn:
        if image.scene.degraded:
            continue
        rng = generator(SPLIT, image.seed, image.index, BOXES_PART)
        for number, thing in enumerate(image.scene.objects):
            label = name(thing, image.scene, rng)
            if label is None:
                continue
            left, top, right, bottom = map(float, thing.box)
            rows.append({
                "question_id": f"{image.id}-{number}", "question": "Please carefully observe the area circled in the "
                "image and come up with a caption for the area.", "answer": [f"the {label}"], "image": image.cell,
                "segmentation": [left, top, right, top, right, bottom, left, bottom],
                "bbox": [left, top, right - left, bottom - top], "iscrowd": 0, "file_name": f"{image.id}.png",
            })  # fmt: skip
    return {("default", split): rows for split in ("val", "testA", "testB")}


ROWS: dict[str, Callable[[list[DrawnImage]], Rows]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "scienceqa": _scienceqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mmbench": lambda drawn: _mmbench(drawn, "choice", "en"),
    "mmbench_cn": lambda drawn: _mmbench(drawn, "choice_cn", "cn"),
    "mme": _mme,
    "ocrbench": _ocrbench,
    "docvqa": _docvqa,
    "chartqa": _chartqa,
    "refcoco": _refcoco,
}
