"""Benchmarks of a model, each in a process of its own: what `llava-stf bench tasks` runs.

    run_tasks(TaskOptions(ModelOptions("tiny"), ["pope", "gqa"], "llava", Path("runs/tiny"), data=Path("data")))

A run that was stopped, by whatever means, goes on with `resume=True` from its last finished batch and gives the result
that it would have given.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from llava_stf.errors import LlavaStfError
from llava_stf.io.publish import write_json
from llava_stf.loading.digest import model_digest
from llava_stf_eval.benchmarks.child import WorkerArgs, failure
from llava_stf_eval.benchmarks.folder import RunFolder, open_run, sole_user
from llava_stf_eval.benchmarks.models import ModelOptions
from llava_stf_eval.data.schemas import check_data, datasets_cache
from llava_stf_eval.measurement.machine import machine, versions
from llava_stf_eval.protocols import BENCHMARKS, USUAL, parse, tasks
from llava_stf_eval.requirements import lmms_eval_folder

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
# A run is one model, asked one way: with any of these changed the answers could differ.
_MODEL_FIELDS = (
    *("dtype", "quantization", "attn_implementation", "kernels", "init", "vision_tower", "compile", "instructions"),
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TaskOptions:
    """What to ask of which model.

    Attributes:
        model: need not be resolved.
        benchmarks: names such as "pope", "vqav2:test"; none is all nine.
        protocol: "lmms-eval" or "llava".
        output: the run's folder.
        data: folder of local data sets in hub layout; with it nothing is fetched. `None` lets lmms-eval fetch them.
        limit: documents of each benchmark from its first, for a quick look; MME has two to an image and takes an even
            number.
        batch_size: questions at a time; LLaVA-1.5's own scripts ask one by one.
        resume: go on with a run of the same options in `output`; what failed is tried again.
    """

    model: ModelOptions
    benchmarks: Sequence[str]
    protocol: str
    output: Path
    data: Path | None = None
    limit: int | None = None
    batch_size: int = 1
    resume: bool = False


def run_tasks(options: TaskOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Runs the benchmarks and returns the content of `results.json`, where a benchmark may have failed.

    What it raises, it raises before the model is loaded.

    Args:
        options: what to run.
        progress: called with a benchmark's name, how many of its questions are answered, and how many it has.

    Raises:
        LlavaStfError: an unknown benchmark, protocol or method; a number out of range; `output` holds another run.
        DataError: a local data set is missing or has another schema.
        MissingDependencyError: lmms-eval is not installed.
        ModelNotFoundError: there is no such model.
        CheckpointError: it is damaged, or no LLaVA.
        FusionError: the model cannot be had at that number of vision tokens.
    """
    names = list(dict.fromkeys(options.benchmarks)) or list(USUAL)
    _check(options, names)
    model = options.model.resolved().placed()
    digest = model_digest(model.pretrained)
    shown = "/".join(filter(None, (options.model.pretrained, options.model.subfolder)))
    about = {
        "model": shown,
        "method": model.method,
        "vision_tokens": model.vision_tokens,
        "mean_tokens": model.mean_tokens(),
        "method_options": dict(model.method_options),
        "protocol": options.protocol,
        "seed": model.seed,
        "limit": options.limit,
        "batch_size": options.batch_size,
    }
    data = None if options.data is None else options.data.resolve()
    settings = {name: getattr(model, name) for name in _MODEL_FIELDS}
    identity = {
        **about,
        "checkpoint": digest,
        **settings,
        "data": "hub" if data is None else str(data),
        "device": None if model.device is None else model.device.partition(":")[0],  # which of several GPUs is free
        **{f"version of {package}": version for package, version in versions().items()},
    }
    folder = open_run(options.output, identity, resume=options.resume)
    with sole_user(folder):
        found = {
            **about,
            "checkpoint": {"path": model.pretrained, "hash": digest},
            "options": settings,
            "machine": machine(),
            "versions": versions(),
        }
        if folder.results.exists():  # of a run that this one goes on with
            write_json(folder.results, _results(found, folder, complete=False))
        for name in names:
            if folder.records().get(name, {"status": "failed"})["status"] == "failed":
                args = WorkerArgs(
                    name, options.protocol, model, folder.root, data, _limit(name, options.limit), options.batch_size
                )
                write_json(folder.record(name), _run(args, folder, progress))
            results = _results(found, folder, complete=name == names[-1])
            write_json(folder.results, results)
    return results


def _check(options: TaskOptions, names: Sequence[str]) -> None:
    for name in names:
        tasks(name, options.protocol)
    if options.limit is not None and options.limit < 1:
        raise LlavaStfError(f"limit must be at least 1, found {options.limit}.")
    if options.batch_size < 1:
        raise LlavaStfError(f"batch_size must be at least 1, found {options.batch_size}.")
    lmms_eval_folder()
    if options.data is not None:
        for name in names:
            check_data(options.data.resolve(), name, options.protocol)


def _limit(name: str, limit: int | None) -> int | None:
    """MME's score is of pairs of questions, and lmms-eval cannot form it with one of them missing."""
    return limit + limit % 2 if limit is not None and parse(name)[0].name == "mme" else limit


def _run(args: WorkerArgs, folder: RunFolder, progress: Progress | None) -> dict[str, Any]:
    """Runs one benchmark to its end and returns its record, be it of a failure."""
    record, log = folder.record(args.benchmark), folder.log(args.benchmark)
    record.unlink(missing_ok=True)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if args.data is not None:
        environment |= dict.fromkeys(OFFLINE, "1")
        # `datasets` knows prepared data by folder name, so data of another folder of that name would be taken for ours.
        environment["HF_DATASETS_CACHE"] = str(datasets_cache(args.data, args.benchmark))
    # -P: a file in the folder where the command was given must not hide a library.
    command = [sys.executable, "-P", "-m", "llava_stf_eval.benchmarks.child", args.to_json()]
    with log.open("a") as errors, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if progress is not None:
                done, total = map(int, line.split())
                progress(args.benchmark, done, total)
    if not record.exists():
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        return failure(args, f"Its process ended with {how} and left no result; see {log}.")
    return folder.records()[args.benchmark]


def _results(found: dict[str, Any], folder: RunFolder, *, complete: bool) -> dict[str, Any]:
    """Everything that is known of the run, its benchmarks in their usual order; whether all that were asked for ran."""
    records = folder.records()
    usual = list(BENCHMARKS)
    order = sorted(records, key=lambda name: (usual.index(parse(name)[0].name), name))
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"complete": complete, **found, "date": date, "benchmarks": {name: records[name] for name in order}}
