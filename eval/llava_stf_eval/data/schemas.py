"""The check of a local copy of a data set before a model is loaded.

A local copy has the hub's layout: a folder `<org>/<name>/` with a README that names configurations and splits, and
Parquet files. The check reads the files' schemas and the few columns that say whether rows belong together; it opens no
image.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_stf.errors import DataError
from llava_stf_eval.data.tables import ANSWERS, TABLES, Table
from llava_stf_eval.protocols import LLAVA, parse, tasks
from llava_stf_eval.scoring.choices import ROTATION, options_of
from llava_stf_eval.scoring.pope import CATEGORIES
from llava_stf_eval.scoring.vqa import TEXTVQA_REFERENCES

UNANSWERED = frozenset({"answer", "answers"})  # may be null or absent where a server scores


def check_data(folder: Path, benchmark: str, protocol: str) -> None:
    """Whether the local copy under `folder` is what the benchmark's task reads; an error says what is not.

    Args:
        folder: of the data sets.
        benchmark: a name of `BENCHMARKS`, or "name:split".
        protocol: "lmms-eval" or "llava".

    Raises:
        LlavaStfError: an unknown benchmark, split or protocol.
        DataError: the data set, a configuration, split or column is missing; a column has another type; MMBench lacks a
            rotation, MME a question of a pair, POPE a category (which only `llava` tells apart); or a question has no
            reference answers.
    """
    found, split = parse(benchmark)
    tasks(benchmark, protocol)
    root = folder / found.dataset
    if not root.is_dir():
        others = sorted(str(path.relative_to(folder)) for path in folder.glob(f"*/{root.name}") if path.is_dir())
        hint = f"found {others[0]}: rename or link it" if others else "found no such folder"
        raise DataError(f"{found.title}: expected the data set {found.dataset} in {folder}, {hint}.")
    scored = split != "test" or found.server is None
    for table in TABLES[found.name]:
        if table.needed:
            files, declared = _files(root, table.config, table.splits[split])
            _check_columns(files, declared, table, scored=scored)
            _check_rows(found.name, protocol, files, scored=scored)


def datasets_cache(folder: Path, benchmark: str) -> Path:
    """A value of HF_DATASETS_CACHE for what `datasets` prepares from this local copy alone.

    `datasets` finds prepared data by the folder's name and the README's content. Two copies with one README, or one
    whose files were replaced, would silently share it; here it depends on every file's path, size and time.
    """
    from datasets import config

    root = (folder / parse(benchmark)[0].dataset).resolve()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return Path(config.HF_DATASETS_CACHE) / f"llava_stf-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"


def _files(root: Path, config: str, split: str) -> tuple[list[str], Mapping[str, Any]]:
    """The Parquet files of one split, and the columns whose types the README declares."""
    from datasets import get_dataset_config_names, load_dataset_builder

    try:
        configs = get_dataset_config_names(str(root))
        if config not in configs:
            raise DataError(f"{root}: expected a configuration {config!r}, found {_names(configs)}.")
        builder = load_dataset_builder(str(root), config)
    except FileNotFoundError as error:
        raise DataError(f"{root}: expected a README and Parquet files, as on the hub: {error}") from error
    found = builder.config.data_files or {}
    if split not in found:
        raise DataError(f"{root}, {config}: expected a split {split!r}, found {_names(found)}.")
    if not all(str(file).endswith(".parquet") for file in found[split]):
        raise DataError(f"{root}, {config}, {split}: expected Parquet files, found {found[split][0]}.")
    return [str(file) for file in found[split]], builder.info.features or {}


def _check_columns(files: list[str], declared: Mapping[str, Any], table: Table, *, scored: bool) -> None:
    from datasets import Features
    from pyarrow import ArrowInvalid, parquet

    for file in files:
        try:
            stored = Features.from_arrow_schema(parquet.read_schema(file))
        except ArrowInvalid as error:
            raise DataError(f"{file}: expected a Parquet file, found none or a damaged one ({error}).") from error
        present = {name: declared.get(name, feature) for name, feature in stored.items()}
        for name in sorted(table.needed if scored else table.needed - UNANSWERED):
            if name not in present:
                raise DataError(f"{file}: expected a column {name!r} ({table.columns[name]}), found {_names(present)}.")
            if not _fits(present[name], table.columns[name]):
                raise DataError(
                    f"{file}: expected column {name!r} to be {table.columns[name]}, found {_type_name(present[name])}."
                )


def _fits(feature: Any, kind: str) -> bool:
    """Whether a column may stand in for the published type: any width of number or string, any image."""
    name = _type_name(feature)
    if kind == ANSWERS:
        return name.startswith("list<") and "answer: string" in name and "answer_id: int" in name
    return re.sub(r"\d+", "", name) == re.sub(r"\d+", "", kind)


def _type_name(feature: Any) -> str:
    from datasets import Image, Value

    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, Value):
        return feature.dtype.replace("large_", "").replace("uint", "int")
    if isinstance(feature, dict):
        return ", ".join(f"{name}: {_type_name(inner)}" for name, inner in feature.items())
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return f"list<{_type_name(inner)}>" if inner is not None else type(feature).__name__


def _names(values: Iterable[Any]) -> str:
    return ", ".join(map(repr, values)) or "none"


def _read(files: list[str], *columns: str) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    for file in files:
        for batch in parquet.ParquetFile(file).iter_batches(columns=list(columns)):
            yield from batch.to_pylist()


def _check_rows(benchmark: str, protocol: str, files: list[str], *, scored: bool) -> None:
    if benchmark in ("mmbench", "mmbench_cn"):
        _check_rotations(files)
    elif benchmark == "mme":
        _check_pairs(files)
    elif benchmark == "pope" and protocol == LLAVA:
        present = {row["category"] for row in _read(files, "category")}
        if present != set(CATEGORIES):
            found = _names(sorted(present))
            raise DataError(f"{files[0]}: expected the categories {_names(CATEGORIES)}, found {found}.")
    elif benchmark == "refcoco":
        _check_boxes(files)
    elif benchmark in ("vqav2", "vizwiz", "textvqa", "docvqa") and scored:
        _check_references(benchmark, files)


def _check_rotations(files: list[str]) -> None:
    """Every question has all the rotations that others with as many options have."""
    rotations: defaultdict[int, set[int]] = defaultdict(set)
    options: dict[int, int] = {}
    for row in _read(files, "index", "A", "B", "C", "D"):
        rotations[row["index"] % ROTATION].add(row["index"] // ROTATION)
        options[row["index"] % ROTATION] = len(options_of(row))
    expected: Counter[int] = Counter()
    for question, count in options.items():
        expected[count] = max(expected[count], *(rotation + 1 for rotation in rotations[question]))
    for question, present in sorted(rotations.items()):
        missing = sorted(set(range(expected[options[question]])) - present)
        if missing:
            raise DataError(
                f"{files[0]}: question {question} lacks the row with index {question + missing[0] * ROTATION}: "
                f"expected {expected[options[question]]} rotations, found {len(present)}."
            )


def _check_pairs(files: list[str]) -> None:
    questions = Counter((row["category"], row["question_id"]) for row in _read(files, "category", "question_id"))
    for (category, question), count in questions.items():
        if count != 2:
            raise DataError(
                f"{files[0]}: expected a pair of questions for {question!r} of category {category!r}, found {count}."
            )


def _check_references(benchmark: str, files: list[str]) -> None:
    key = "questionId" if benchmark == "docvqa" else "question_id"
    for row in _read(files, key, "answers"):
        answers = row["answers"]
        if not answers or (benchmark == "textvqa" and len(answers) != TEXTVQA_REFERENCES):
            expected = TEXTVQA_REFERENCES if benchmark == "textvqa" else "at least one"
            raise DataError(
                f"{files[0]}: question {row[key]}: expected {expected} reference answers, found {len(answers or [])}."
            )
        if benchmark == "vqav2" and len({answer["answer_id"] for answer in answers}) != len(answers):
            raise DataError(f"{files[0]}: question {row[key]}: two reference answers have one answer_id.")


def _check_boxes(files: list[str]) -> None:
    for row in _read(files, "question_id", "bbox"):
        box = row["bbox"] or []
        if len(box) != 4 or min(box[2:]) <= 0:
            raise DataError(
                f"{files[0]}: question {row['question_id']}: expected a box of left, top, width and height, found "
                f"{box}."
            )
