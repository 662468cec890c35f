"""The measurement as a whole: every case, its variants taking turns in one process on the same images and text.

The result is a dictionary that JSON holds as it is: `complete`, `machine`, `models`, `plan`, and `rows`, one for each
variant in each case, with its raw seconds, the median and the spread (interquartile range) of every stage, and how many
times faster than the first variant it was. That ratio is the median of the ratios of runs that stood side by side, so
that a machine that slows down meanwhile slows both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from llava_stf_eval.measurement.result import begin_or_resume
from llava_stf_eval.speed.bench import Bench, Elsewhere, Here
from llava_stf_eval.speed.machine import load_average
from llava_stf_eval.speed.measuring import STAGES, Case, Measured
from llava_stf_eval.speed.plan import Plan, check_plan

ROW_FIELDS = ("case", "model", "run_by", "method", "vision_tokens", "mean_tokens", "error")  # of a failed row too


def measure(
    plan: Plan,
    *,
    before: dict[str, Any] | None = None,
    on_row: Callable[[dict[str, Any]], object] = lambda result: None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures the plan.

    `before` is the result of the same plan that was broken off: cases that it has are not measured again. `on_row` is
    called with the result so far, before the first case and after each, `progress` with a line about what comes next.

    Raises:
        LlavaStfError: a case cannot be measured; where the plan itself is at fault, before any weight is made or read.
    """
    subjects = check_plan(plan)
    benches: list[Bench] = []
    try:
        for subject in subjects:
            progress(f"Making the weights of shape {plan.shape}" if plan.shape else f"Loading {subject.name}")
            benches.append((Here if len(subjects) == 1 else Elsewhere)(plan, subject))
        fresh: dict[str, Any] = {
            "machine": benches[0].facts["machine"],
            "models": [bench.facts["model"] for bench in benches],
            "plan": asdict(plan),
            "rows": [],
        }
        result = begin_or_resume(fresh, before, row_fields=ROW_FIELDS)
        on_row(result)
        measured = [row["case"] for row in result["rows"]]
        for case in plan.cases():
            if asdict(case) in measured:
                continue
            asked = f"batch {case.batch_size}, {case.text_tokens} text and {case.new_tokens} new tokens"
            progress(f"{asked}, {case.attention}")
            result["rows"] += _measure_case(case, plan, benches)
            result["machine"]["load_average_after"] = load_average()
            on_row(result)
    finally:
        for bench in benches:
            bench.close()
    result["complete"] = True
    return result


def _measure_case(case: Case, plan: Plan, benches: list[Bench]) -> list[dict[str, Any]]:
    """A row for each setting of each bench; where memory runs out, rows that say so."""
    turns = [(bench, index) for bench in benches for index in range(len(bench.subject.settings))]
    runs: list[list[Measured]] = [[] for _ in turns]
    try:
        for _ in range(plan.warm_up):
            for bench, index in turns:
                bench.measure(case, index)
        for repeat in range(plan.repeats):
            pairs = list(zip(turns, runs, strict=True))
            for (bench, index), kept in pairs if repeat % 2 == 0 else reversed(pairs):
                kept.append(bench.measure(case, index))
    except torch.OutOfMemoryError:
        return [_empty_row(case, *turn, "out of memory") for turn in turns]
    return [_row(case, *turn, own, runs[0]) for turn, own in zip(turns, runs, strict=True)]


def _row(case: Case, bench: Bench, index: int, runs: list[Measured], base: list[Measured]) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        seconds = [run.seconds[stage] for run in runs]
        pairs = [(first.seconds[stage], run.seconds[stage]) for first, run in zip(base, runs, strict=True)]
        ratios = [first / own for first, own in pairs if first > 0 and own > 0]
        stages[stage] = {
            "median": statistics.median(seconds),
            "spread": _spread(seconds),
            "seconds": seconds,
            "times_faster": statistics.median(ratios) if ratios else None,
        }
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return {
        **_empty_row(case, bench, index, None),
        "stages": stages,
        "tokens_per_second": case.batch_size * case.new_tokens / stages["end_to_end"]["median"],
        "peak_bytes": max(peaks) if peaks else None,
        "kv_bytes": runs[-1].kv_bytes,
        "llm_tokens": list(runs[-1].llm_tokens),
        "counted": bench.count(case, index),
    }


def _empty_row(case: Case, bench: Bench, index: int, error: str | None) -> dict[str, Any]:
    setting = bench.subject.settings[index]
    return {
        "case": asdict(case),
        "model": bench.subject.name,
        "run_by": bench.facts["model"]["run_by"],
        "method": setting.method,
        "method_options": dict(setting.options),
        "vision_tokens": setting.vision_tokens,
        "mean_tokens": setting.mean_tokens,
        "error": error,
    }


def _spread(seconds: list[float]) -> float:
    """Interquartile range; 0 of a single run."""
    if len(seconds) < 2:
        return 0.0
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return high - low
