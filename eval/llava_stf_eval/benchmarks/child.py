"""One benchmark in a process of its own, so that its failure, or the memory it takes, is nobody else's.

Started by `run_tasks`: reads its arguments from the command line, says on standard output how many questions are
done, and leaves a record. When the process that started it dies, it ends too, between two batches or in one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_stf.errors import DataError, LlavaStfError
from llava_stf.io.publish import commit, write_json
from llava_stf_eval.benchmarks.folder import RunFolder
from llava_stf_eval.benchmarks.models import ModelOptions
from llava_stf_eval.benchmarks.samples import write_samples
from llava_stf_eval.plugin import MODEL_ID
from llava_stf_eval.protocols import headline, include_path, needs_server, parse, tasks


@dataclass(frozen=True)
class WorkerArgs:
    """What to run; `output` and `data` are absolute paths, `model` is resolved."""

    benchmark: str
    protocol: str
    model: ModelOptions
    output: Path
    data: Path | None
    limit: int | None
    batch_size: int

    def to_json(self) -> str:
        """The fields as JSON text; paths as strings."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> WorkerArgs:
        """The arguments that `to_json` wrote."""
        fields = json.loads(text)
        data = None if fields["data"] is None else Path(fields["data"])
        paths = {"output": Path(fields["output"]), "data": data}
        return cls(**{**fields, **paths, "model": ModelOptions(**fields["model"])})


def failure(args: WorkerArgs, error: str) -> dict[str, Any]:
    """The record of a benchmark that gave no result."""
    numbers = dict.fromkeys(("score", "seconds", "samples_per_second", "input_tokens", "output_tokens", "submission"))
    metric = parse(args.benchmark)[0].metric
    return {"status": "failed", **numbers, "metric": metric, "metrics": {}, "questions": 0, "error": error}


def run_benchmark(args: WorkerArgs, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Asks everything, scores it, writes samples and submission; returns the benchmark's record."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from llava_stf_eval.benchmarks.lmms_model import LlavaStfLmms

    folder, name = RunFolder(args.output), args.benchmark
    (task,) = tasks(name, args.protocol)
    ours = include_path(args.protocol)
    model = LlavaStfLmms(
        batch_size=args.batch_size, journal=folder.journal(name), progress=progress, **asdict(args.model)
    )
    if args.data is not None:
        os.chdir(args.data)  # a data set's name is there a folder's, and lmms-eval takes it before the hub's
    written = folder.written(name)
    shutil.rmtree(written, ignore_errors=True)
    seed = args.model.seed
    evaluated = simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=TaskManager(
            include_path=str(ours), include_defaults=not (ours / f"{task}.yaml").is_file(), model_name=MODEL_ID
        ),
        limit=args.limit,
        batch_size=args.batch_size,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        cli_args=Namespace(output_path=str(written), process_with_media=False),
    )
    samples = sorted(evaluated["samples"][task], key=lambda sample: sample["doc_id"])
    write_samples(folder, name, args.protocol, model, samples)
    score, server = headline(name, args.protocol, evaluated["results"]), needs_server(name, args.protocol)
    if score is None and not server:
        raise DataError(f"lmms-eval gave no {parse(name)[0].metric} for {len(samples)} questions of {name}.")
    counts = [sample["token_counts"][0] for sample in samples]
    assert model.journal is not None
    return {
        "status": "submission" if server else "scored",
        "score": score,
        "metric": parse(name)[0].metric,
        "metrics": _numbers(evaluated["results"][task]),
        "questions": len(samples),
        "seconds": model.journal.seconds,
        "samples_per_second": len(samples) / model.journal.seconds,
        "input_tokens": sum(count["input_tokens"] for count in counts) / len(counts),
        "output_tokens": sum(count["output_tokens"] for count in counts) / len(counts),
        "submission": _submission(folder, name, server),
        "error": None,
    }


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    """lmms-eval's metrics that are finite numbers, without its `,none` behind the name."""
    numbers = {name.removesuffix(",none"): value for name, value in results.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _submission(folder: RunFolder, benchmark: str, server: bool) -> str | None:
    """Moves what lmms-eval wrote to `submissions/`; the file to send to a server, a table where there is one."""
    files = sorted(path for path in folder.written(benchmark).rglob("*") if path.is_file())
    if files:
        folder.submissions.mkdir(exist_ok=True)
    moved = [folder.submissions / path.name for path in files]
    for written, place in zip(files, moved, strict=True):
        commit(written, place)
    tables = [path for path in moved if path.suffix == ".xlsx"]
    found = tables or (moved if server else [])
    return str(found[0].relative_to(folder.root)) if found else None


def _sentence(error: BaseException) -> str:
    """What went wrong in one line; behind a retry of lmms-eval's stands the error that made it give up."""
    attempt = getattr(error, "last_attempt", None)
    cause = attempt.exception() if attempt is not None else error
    text = " ".join(str(cause).split())
    return text if isinstance(cause, LlavaStfError) else f"{type(cause).__name__}: {text}"


def _end_with_parent() -> None:
    while os.read(0, 1):  # standard input is a pipe from the parent: it ends when the parent does
        pass
    os._exit(1)


def main() -> None:
    """Run the benchmark that the first argument describes, and report progress on standard output."""
    args = WorkerArgs.from_json(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what lmms-eval prints belongs into the log

    def report(done: int, total: int) -> None:
        print(done, total, file=reports, flush=True)

    try:
        record = run_benchmark(args, report)
    except Exception as error:  # noqa: BLE001 - the last stop of this process: the record says what happened
        traceback.print_exc()
        record = failure(args, _sentence(error))
    write_json(RunFolder(args.output).record(args.benchmark), record)


if __name__ == "__main__":
    main()
