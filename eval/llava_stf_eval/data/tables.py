"""Columns and types of the data sets, as they are published on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_stf_eval.scoring.pope import CATEGORIES

ANSWERS = "list<answer: string, answer_confidence: string, answer_id: int64>"


@dataclass(frozen=True)
class Table:
    """One configuration of a data set.

    Attributes:
        config: its name.
        splits: hub's name of each split, by the name that is used here.
        columns: the type of every column, as it is published.
        needed: the columns that prompts and scores read; a local copy may lack the others.
    """

    config: str
    splits: Mapping[str, str]
    columns: Mapping[str, str]
    needed: frozenset[str] = field(default_factory=frozenset)


def _columns(text: str = "", **others: str) -> dict[str, str]:
    """Columns of type string, named in one line, and others with their types."""
    return {**dict.fromkeys(text.split(), "string"), **others}


def _mmbench(config: str) -> Table:
    columns = _columns("question hint answer A B C D category L2-category source comment split")
    return Table(
        config, {"dev": "dev", "test": "test"}, {"index": "int64", **columns, "image": "image"},
        frozenset({"index", "image", *columns} - {"comment"}),
    )  # fmt: skip


_POPE = _columns("id question_id question answer image_source category", image="image")
TABLES: dict[str, tuple[Table, ...]] = {
    "vqav2": (
        Table(
            "default", {"val": "validation", "test": "test"},
            {
                "question_id": "int64", "image": "image", "question": "string", "answers": ANSWERS,
                **_columns("question_type answer_type multiple_choice_answer"), "image_id": "int64",
            },
            frozenset({"question_id", "image", "question", "answers"}),
        ),
    ),
    "gqa": (
        Table(
            "testdev_balanced_instructions", {"testdev": "testdev"},
            _columns("id imageId question answer fullAnswer"), frozenset({"imageId", "question", "answer"}),
        ),
        Table(
            "testdev_balanced_images", {"testdev": "testdev"},
            _columns("id", image="image"), frozenset({"id", "image"}),
        ),
    ),
    "vizwiz": (
        Table(
            "default", {"val": "val", "test": "test"},
            {**_columns("question_id question category"), "image": "image", "answers": "list<string>"},
            frozenset({"question_id", "question", "image", "answers"}),
        ),
    ),
    "scienceqa": (
        Table(
            "ScienceQA-IMG", {"test": "test"},
            {
                "image": "image", "question": "string", "choices": "list<string>", "answer": "int8",
                **_columns("hint task grade subject topic category skill lecture solution"),
            },
            frozenset({"image", "question", "hint", "choices", "answer"}),
        ),
    ),
    "textvqa": (
        Table(
            "default", {"val": "validation"},
            {
                "question_id": "int32", "image_id": "string", "question": "string", "image": "image",
                "answers": "list<string>", "ocr_tokens": "list<string>",
            },
            frozenset({"question_id", "question", "image", "answers", "ocr_tokens"}),
        ),
    ),
    "pope": (
        Table(
            "default", {"test": "test"}, _POPE,
            frozenset({"question_id", "question", "answer", "category", "image"}),
        ),
        Table("Full", {category: category for category in CATEGORIES}, _POPE),
    ),
    "mmbench": (_mmbench("en"),),
    "mmbench_cn": (_mmbench("cn"),),
    "mme": (
        Table(
            "default", {"test": "test"}, _columns("question_id question answer category", image="image"),
            frozenset({"question_id", "question", "answer", "category", "image"}),
        ),
    ),
    "ocrbench": (
        Table(
            "default", {"test": "test"},
            {**_columns("dataset question question_type"), "answer": "list<string>", "image": "image"},
            frozenset({"dataset", "question", "question_type", "answer", "image"}),
        ),
    ),
    "docvqa": (
        Table(
            "DocVQA", {"val": "validation"},
            {
                **_columns("questionId question"), "question_types": "list<string>", "image": "image",
                "docId": "int64", **_columns("ucsf_document_id ucsf_document_page_no data_split"),
                "answers": "list<string>",
            },
            frozenset({"questionId", "question", "image", "answers"}),
        ),
    ),
    "chartqa": (
        Table(
            "default", {"test": "test"}, _columns("type question answer", image="image"),
            frozenset({"type", "question", "answer", "image"}),
        ),
    ),
    "refcoco": (
        Table(
            "default", {split: split for split in ("val", "testA", "testB")},
            {
                **_columns("question_id question file_name"), "image": "image", "answer": "list<string>",
                "segmentation": "list<float32>", "bbox": "list<float32>", "iscrowd": "int8",
            },
            frozenset({"question_id", "image", "answer", "bbox"}),
        ),
    ),
}  # fmt: skip


def features(table: Table) -> Any:
    """The table's columns as `datasets.Features`."""
    from datasets import Features, Image, Value

    kinds = {
        "image": Image(),
        "list<string>": [Value("string")],
        "list<float32>": [Value("float32")],
        ANSWERS: [{"answer": Value("string"), "answer_confidence": Value("string"), "answer_id": Value("int64")}],
    }
    return Features({name: kinds.get(kind) or Value(kind) for name, kind in table.columns.items()})
