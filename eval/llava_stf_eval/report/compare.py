"""Two runs against each other: differences with bootstrap confidence intervals, and the answers that flipped.

Only questions that both runs answered count. They are resampled in pairs, both runs' scores together, and in the units
in which a benchmark scores: MMBench a question with its rotations, right if every one is; MME the two questions about
an image; else a question. MME sums over its categories and the authors' POPE averages over them, so there each category
is resampled by itself. OCRBench counts right answers. Scores are on the scale of `bench tasks`.

The interval is the bootstrap's percentile interval. Where few units differ it is too narrow; `FEW` is where the tables
say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llava_stf.errors import DataError
from llava_stf_eval.protocols import LLAVA
from llava_stf_eval.report.bootstrap import RESAMPLES, Statistic, Stratum, bootstrap, f1, mean
from llava_stf_eval.report.runs import RIGHT, Run, Sample, table_order
from llava_stf_eval.scoring.mme import COGNITION
from llava_stf_eval.scoring.pope import yes_or_no

FEW = 10  # differing units

Pair = tuple[Sample, Sample]


@dataclass(frozen=True)
class Difference:
    """One benchmark: both scores over the common questions, B minus A with its interval, and what flipped.

    `unpaired` counts the questions that only one run answered, `differing` the units whose scores differ.
    """

    benchmark: str
    questions: int
    unpaired: int
    units: int
    differing: int
    score_a: float
    score_b: float
    difference: float
    low: float
    high: float
    gained: list[Pair]
    lost: list[Pair]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Run B against run A; `settings` are those in which they differ, with A's value and B's."""

    a: Run
    b: Run
    seed: int
    settings: dict[str, tuple[str, str]]
    differences: list[Difference]
    left_out: list[str]


def compare_runs(a: Run, b: Run, *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Compare every benchmark that both runs scored.

    Raises:
        DataError: the runs followed different protocols, answered other data under the same ids, or have no scored
            benchmark or no question of it in common.
    """
    if a.protocol != b.protocol:
        raise DataError(
            f"Expected two runs of one protocol, found {a.protocol} in {a.folder} and {b.protocol} in {b.folder}; "
            "run one of them again with the other's --protocol."
        )
    scored = [name for name in a.benchmarks if name in b.benchmarks and _scored(a, name) and _scored(b, name)]
    left_out = sorted({*a.benchmarks, *b.benchmarks} - {*scored}, key=table_order)
    if not scored:
        raise DataError(
            f"Expected a benchmark that both runs scored, found {', '.join(a.benchmarks) or 'none'} in {a.folder} and "
            f"{', '.join(b.benchmarks) or 'none'} in {b.folder}; run the missing ones."
        )
    differences = [_difference(a, b, name, seed, resamples) for name in scored]
    return Comparison(a, b, seed, _settings(a, b), differences, left_out)


def strata_of(benchmark: str, protocol: str, pairs: Sequence[Pair]) -> tuple[list[Stratum], Statistic]:
    """The units of a benchmark in their strata, and the statistic of a stratum."""
    name = benchmark.partition(":")[0]
    if name in ("mmbench", "mmbench_cn"):
        questions = _grouped(pairs, _image).values()
        units = [[[100.0 * all(map(_hit, side))] for side in zip(*group, strict=True)] for group in questions]
        return [Stratum(np.array(units), 1.0)], mean
    if name == "mme":
        return [
            Stratum(np.array([_mme_unit(group) for group in _grouped(members, _image).values()]), 1.0)
            for category, members in _grouped(pairs, _category).items()
            if category not in COGNITION
        ], mean
    if name == "pope":
        groups = list(_grouped(pairs, _category).values()) if protocol == LLAVA else [pairs]
        units_of = [[[_pope_columns(side, protocol) for side in pair] for pair in group] for group in groups]
        return [Stratum(np.array(units, dtype=float), 1 / len(groups)) for units in units_of], f1
    weight = len(pairs) / 100 if name == "ocrbench" else 1.0  # lmms-eval counts OCRBench's right answers
    return [Stratum(np.array([[[100.0 * _score(side)] for side in pair] for pair in pairs]), weight)], mean


def highest_score(benchmark: str, strata: Sequence[Stratum]) -> float:
    """What right answers to all questions of the strata score: 1 each in OCRBench, 200 a category in MME, else 100."""
    category = 200 if benchmark.partition(":")[0] == "mme" else 100
    return category * sum(stratum.weight for stratum in strata)


def pair_samples(a: Run, b: Run, benchmark: str) -> tuple[list[Pair], int]:
    """The questions both runs answered, in A's order, and how many only one has.

    Raises:
        DataError: the data differ.
    """
    of_a, of_b = ({sample.id: sample for sample in _unique(run, benchmark)} for run in (a, b))
    pairs = [(sample, of_b[key]) for key, sample in of_a.items() if key in of_b]
    for one, other in pairs:
        for what in ("question", "reference", "image_id"):
            if getattr(one, what) != getattr(other, what):
                raise DataError(
                    f"Expected the same data in both runs, found {what} {getattr(one, what)!r} in {a.folder} and "
                    f"{getattr(other, what)!r} in {b.folder} for {benchmark} {one.id}; run both on the same --data."
                )
    if not pairs:
        raise DataError(
            f"Expected questions of {benchmark} that both runs answered, found none in {a.folder} and {b.folder}; "
            "run both on the same --data and --limit."
        )
    return pairs, len(of_a) + len(of_b) - 2 * len(pairs)


def _difference(a: Run, b: Run, benchmark: str, seed: int, resamples: int) -> Difference:
    pairs, unpaired = pair_samples(a, b, benchmark)
    strata, statistic = strata_of(benchmark, a.protocol, pairs)
    score_a, score_b, low, high = bootstrap(strata, statistic, seed=seed, resamples=resamples)
    return Difference(
        benchmark=benchmark,
        questions=len(pairs),
        unpaired=unpaired,
        units=sum(len(stratum.units) for stratum in strata),
        differing=sum(int((s.units[:, 0] != s.units[:, 1]).any(axis=1).sum()) for s in strata),
        score_a=score_a,
        score_b=score_b,
        difference=score_b - score_a,
        low=low,
        high=high,
        gained=[pair for pair in pairs if not _hit(pair[0]) and _hit(pair[1])],
        lost=[pair for pair in pairs if _hit(pair[0]) and not _hit(pair[1])],
    )


def _scored(run: Run, benchmark: str) -> bool:
    return run.benchmarks[benchmark].status == "scored"


def _unique(run: Run, benchmark: str) -> Iterable[Sample]:
    """A run's samples, of which each has a score and an id of its own."""
    seen: set[str] = set()
    for sample in run.samples(benchmark):
        if sample.id in seen or sample.score is None:
            reason = "twice" if sample.id in seen else "without a score"
            raise DataError(
                f"Found question {sample.id} of {benchmark} {reason} in {run.folder}; run the benchmark again."
            )
        seen.add(sample.id)
        yield sample


def _settings(a: Run, b: Run) -> dict[str, tuple[str, str]]:
    """What the runs do not share, but for their folders and dates."""
    named = [
        {
            "model": run.model,
            "method": run.method_name,
            "vision tokens": run.vision_tokens,
            "mean tokens": run.mean_tokens,
            "checkpoint": str(run.checkpoint.get("hash"))[:12],
            "seed": run.seed,
            "limit": run.limit,
            "batch size": run.batch_size,
            **{f"machine, {name}": value for name, value in run.machine.items()},
            **{f"version of {name}": version for name, version in run.versions.items()},
        }
        for run in (a, b)
    ]
    names = dict.fromkeys(name for values in named for name in values)
    found = {name: (str(named[0].get(name)), str(named[1].get(name))) for name in names}
    return {name: values for name, values in found.items() if values[0] != values[1]}


def _grouped(pairs: Iterable[Pair], key: Callable[[Sample], str]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair[0]), []).append(pair)
    return groups


def _category(sample: Sample) -> str:
    return sample.category or ""


def _image(sample: Sample) -> str:
    return sample.image_id


def _score(sample: Sample) -> float:
    assert sample.score is not None  # `_unique` has seen to it
    return sample.score


def _hit(sample: Sample) -> bool:
    return _score(sample) >= RIGHT


def _mme_unit(group: Sequence[Pair]) -> list[list[float]]:
    """Accuracy plus 100 if both answers about the image are right, for each run: [2, 1]."""
    hits = [[_hit(side) for side in sides] for sides in zip(*group, strict=True)]
    return [[100 * sum(side) / len(side) + 100 * all(side)] for side in hits]


def _pope_columns(sample: Sample, protocol: str) -> list[bool]:
    """Whether the answer is a right yes, a yes, and whether yes is the truth."""
    answer = yes_or_no(sample.answer) if protocol == LLAVA else sample.answer.lower().strip()
    yes, truth = answer == "yes", str(sample.reference).lower().strip() == "yes"
    return [yes and truth, yes, truth]
