"""Reading a run's folder: `results.json` and one file of samples for each benchmark."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llava_stf.errors import DataError
from llava_stf_eval.protocols import BENCHMARKS
from llava_stf_eval.report.published import budget_text

Status = Literal["scored", "submission", "failed"]
RIGHT = 0.5  # a sample that scores less is a wrong answer: VQA's soft accuracy lies between 0 and 1


@dataclass(frozen=True)
class Sample:
    """One question with its answer; `score` from 0 to 1, None where a server scores it.

    `image_id` is what questions about one image share, in MME the pair and in MMBench a question's rotations. `image`
    is a path below the run's folder, None where the run kept no image. `category` is the benchmark's own: MME and
    POPE form scores within them.
    """

    id: str
    question: str
    prompt: str
    answer: str
    reference: Any
    score: float | None
    image_id: str
    image: str | None
    category: str | None = None

    @property
    def wrong(self) -> bool:
        """Whether the question was scored and not right."""
        return self.score is not None and self.score < RIGHT


@dataclass(frozen=True)
class BenchmarkResult:
    """What a run has of one benchmark: score in the published scale, token counts per question, seconds."""

    status: Status
    score: float | None
    metric: str
    metrics: dict[str, Any]
    questions: int
    seconds: float | None
    samples_per_second: float | None
    input_tokens: float | None
    output_tokens: float | None
    submission: str | None
    error: str | None


@dataclass(frozen=True)
class Run:
    """A finished run: what was asked of which model, how, where, and what came of it; `label` names it in tables.

    `vision_tokens` are kept of an image, `mean_tokens` is the mean over the LLM's layers. `method_options` are those in
    which the method differs from the published one.
    """

    folder: Path
    label: str
    model: str
    method: str
    vision_tokens: int
    protocol: str
    seed: int
    limit: int | None
    batch_size: int
    checkpoint: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    date: str
    benchmarks: dict[str, BenchmarkResult]
    mean_tokens: float = 0.0  # 0 in the file of a run that did not say it
    method_options: dict[str, Any] = field(default_factory=dict)

    @property
    def method_name(self) -> str:
        """The method with its options: "fastv, full_layers=3"."""
        return ", ".join([self.method, *(f"{name}={value}" for name, value in self.method_options.items())])

    @property
    def budget(self) -> str:
        """The tokens in words, both numbers where they differ."""
        return budget_text(self.vision_tokens, self.mean_tokens)

    def samples(self, benchmark: str) -> Iterator[Sample]:
        """A benchmark's samples in the order they were asked.

        Raises:
            DataError: a line is none; it names the line.
        """
        path = self.folder / "samples" / f"{benchmark}.jsonl"
        if not path.is_file():
            raise DataError(
                f"Expected the samples of {benchmark} at {path}, found no such file; run the benchmark again."
            )
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _read_sample(line, f"{path}, line {number}")

    def image(self, sample: Sample) -> Path | None:
        """Where a sample's image lies; None if there is none, or none below the run's folder."""
        if sample.image is None:
            return None
        path = (self.folder / sample.image).resolve()
        return path if path.is_file() and path.is_relative_to(self.folder.resolve()) else None


def load_run(folder: Path | str) -> Run:
    """Read the results of `llava-stf bench tasks --output FOLDER`.

    Raises:
        DataError: a folder without a finished run.
    """
    folder = Path(folder)
    path = folder / "results.json"
    if not folder.is_dir():
        raise DataError(f"Expected a run's folder, found none at {folder}; give what --output of bench tasks named.")
    if not path.is_file():
        if (folder / "run.json").is_file():
            raise DataError(f"The run in {folder} is not finished; finish it with bench tasks --resume.")
        raise DataError(f"Expected a run's folder with results.json, found none in {folder}; run bench tasks first.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON or broken UTF-8
        raise DataError(f"Expected JSON in {path}, found: {error}; run bench tasks again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), dict):
        raise DataError(f"Expected an object with 'benchmarks' in {path}; run bench tasks again.")
    if not content.get("complete", True):  # older runs do not say
        raise DataError(f"The run in {folder} was broken off; finish it with bench tasks --resume.")
    benchmarks = {
        name: _read_result(result, f"{path}, benchmark {name}")
        for name, result in sorted(content["benchmarks"].items(), key=lambda item: table_order(item[0]))
    }
    own = {"folder": folder, "label": "", "benchmarks": benchmarks}
    run = Run(**_take(Run, {**content, **own}, str(path), optional=["mean_tokens", "method_options"]))
    run = replace(run, mean_tokens=run.mean_tokens or run.vision_tokens)
    return replace(run, label=f"{run.model} · {run.method_name} · {run.budget}")


def load_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Several runs; the labels of those that agree in model, method and tokens get their folder's name."""
    runs = [load_run(folder) for folder in folders]
    labels = [run.label for run in runs]
    return [
        replace(run, label=f"{run.label} · {run.folder.resolve().name}") if labels.count(run.label) > 1 else run
        for run in runs
    ]


def table_order(benchmark: str) -> tuple[int, str]:
    """Where a benchmark stands in tables: in the papers' order, a split behind its benchmark."""
    known = list(BENCHMARKS)
    base = benchmark.partition(":")[0]
    return known.index(base) if base in known else len(known), benchmark


def _read_sample(line: str, where: str) -> Sample:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise DataError(f"Expected a sample as JSON in {where}, found: {error}; run the benchmark again.") from error
    sample = Sample(**_take(Sample, content, where, optional=["category"]))
    for name in ("id", "question", "answer", "image_id"):
        if not isinstance(getattr(sample, name), str):
            raise DataError(f"Expected {name} to be text in {where}, found {getattr(sample, name)!r}.")
    _check_score(sample.score, where)
    return sample


def _read_result(content: Any, where: str) -> BenchmarkResult:
    result = BenchmarkResult(**_take(BenchmarkResult, content, where))
    if result.status not in get_args(Status):
        raise DataError(f"Expected status {', '.join(get_args(Status))} in {where}, found {result.status!r}.")
    _check_score(result.score, where)
    return result


def _check_score(score: Any, where: str) -> None:
    if score is not None and not (isinstance(score, int | float) and math.isfinite(score)):
        raise DataError(f"Expected a finite number or null for a score in {where}, found {score!r}.")


def _take(kind: type[Any], content: Any, where: str, optional: Collection[str] = ()) -> dict[str, Any]:
    """The values of a dataclass' fields; further ones, of a newer run, are left."""
    if not isinstance(content, dict):
        raise DataError(f"Expected an object in {where}, found {type(content).__name__}; run bench tasks again.")
    names = [field.name for field in fields(kind)]
    missing = [name for name in names if name not in content and name not in optional]
    if missing:
        raise DataError(f"Expected '{missing[0]}' in {where}, found only {', '.join(content)}; run bench tasks again.")
    return {name: content[name] for name in names if name in content}
