"""What the benchmark scripts share: options, floors where there is no GPU, and the run through the cases."""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from measuring import describe_machine, measure_rates, today
from records import RESULTS, Case, Results, Row, open_results
from shapes import Rates, Work

# What a case may fail with: a wrong result, too little memory, a kernel that does not compile or does not fit.
FAILURES: tuple[type[Exception], ...] = (RuntimeError,)
if find_spec("triton") is not None:
    FAILURES = (RuntimeError, import_module("triton.errors").TritonError)
# Exit status of a run that measured only some of its cases, none of them failing: run it again to go on.
INCOMPLETE = 3


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="to time each case for (default %(default)s)")
    parser.add_argument("--budget", type=float, help="seconds after which no further case is begun; exit status 3")
    parser.add_argument(
        "--fresh", action="store_true", help="measure again what this machine has already measured on this code"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the result files")
    parser.add_argument(
        "--dry-run", action="store_true", help="compute every case once, on a CPU too; time and write nothing"
    )
    parser.add_argument("--copy-tb-s", type=float, default=4.3, help="rates for the floors where there is no GPU;")
    parser.add_argument("--matmul-tflop-s", type=float, default=790.0, help="the defaults are those of an H200")
    return parser


def label(case: Case) -> str:
    """A case in a line, in columns."""
    return "  ".join(f"B={value:<3}" if name == "batch" else f"{value!s:<17}" for name, value in case.items())


def print_floors(cases: Iterable[tuple[Case, Work]], options: argparse.Namespace) -> None:
    """Where there is no GPU: what would have to be computed and moved, and that nothing was measured."""
    rates = Rates(options.copy_tb_s, options.matmul_tflop_s)
    print(f"Floors at {rates.copy_tb_s} TB/s and {rates.matmul_tflop_s} TFLOP/s, rates that are given, not measured:")
    for case, work in cases:
        print(
            f"{label(case)}  {work.flops / 1e9:10.1f} GFLOP  {work.bytes / 1e6:9.1f} MB  "
            f"floor {work.floor_ms(rates):8.4f} ms"
        )
    print("There is no CUDA device here: not measured, and nothing was written.")


def open_for(what: str, dtype: torch.dtype, options: argparse.Namespace) -> Results:
    """The result file of this machine to go on with, or a new one; measures the rates of a CUDA device."""
    new = Results(
        path=options.results,
        what=what,
        date=today(),
        commands=[f"python kernels/benchmarks/{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"],
        machine=describe_machine(),
        rates=measure_rates(dtype),
    )
    print(f"{new.machine}\n{new.rates}")
    return open_results(options.results, new, fresh=options.fresh)


class Session:
    """One run of a benchmark: rows that are there already are kept, new ones measured and saved.

    After `budget` seconds no further row is begun.
    """

    def __init__(self, results: Results, budget: float | None = None) -> None:
        self.results = results
        self._deadline = float("inf") if budget is None else time.monotonic() + budget
        self._failed: list[str] = []
        self._left = 0

    def measure(self, case: Case, measure: Callable[[], Row]) -> None:
        """Keep, or measure and save, the row of `case`. A failure is printed and counted, and the run goes on."""
        if any(kept.case == case for kept in self.results.rows):
            print(f"{label(case)}  kept")
            return
        if time.monotonic() > self._deadline:
            self._left += 1
            return
        try:
            row = measure()
        except FAILURES as error:
            self._failed.append(label(case))
            print(f"{label(case)}  FAILED {type(error).__name__}: {str(error)[:2000]}", flush=True)
        else:
            self.results.add(row)
            print(f"{label(case)}  {describe(row, self.results.rates)}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()

    def finish(self) -> int:
        """Say how it went; the exit status."""
        print(f"{len(self.results.rows)} rows in {self.results.path}; {len(self._failed)} failed, {self._left} left.")
        for failure in self._failed:
            print(f"FAILED {failure}")
        return 1 if self._failed else INCOMPLETE if self._left else 0


def describe(row: Row, rates: Rates) -> str:
    """Time, achieved rate, share of the floor and peak memory in a line."""
    achieved = (
        f"{row.flops / row.best_ms / 1e9:7.1f} TFLOP/s" if row.flops else f"{row.bytes / row.best_ms / 1e9:7.2f} TB/s"
    )
    graph = "" if row.graph_ms is None else f"  graph {row.graph_ms:8.4f} ms"
    peak = "" if row.peak_bytes is None else f"  peak {row.peak_bytes / 2**20:8.1f} MiB"
    return f"{row.ms:8.4f} ms{graph}  {achieved}  floor {100 * row.floor_share(rates):5.1f} %{peak}"
