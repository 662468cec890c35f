"""The Markdown tables of README.md and kernels/README.md, made from the result files.

    python kernels/benchmarks/tables.py             # rewrites what stands between the markers in both
    python kernels/benchmarks/tables.py --check     # exit status 1 if one of them is out of date; writes nothing

A table stands between `<!-- benchmarks:start -->` and `<!-- benchmarks:end -->`. README.md has the projector at 7B
widths and the model; kernels/README.md has everything. Of several results of a GPU the newest of each benchmark counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from measuring import ROOT
from records import RESULTS, Results, Row, all_results, only, select
from shapes import MODELS
from targets import compiled_ms, first_token_ratio, ratio, target_lines

START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
NOT_MEASURED = "Speed on a GPU is not measured yet; `scripts/gpu_check.sh` measures it."
EMPTY = "–"


def newest(results: Iterable[Results]) -> dict[str, dict[str, Results]]:
    """GPU -> benchmark -> its newest results; `results` are sorted by date."""
    found: dict[str, dict[str, Results]] = {}
    for result in results:
        found.setdefault(result.machine.gpu, {})[result.what] = result
    return found


def markdown(results: Iterable[Results], *, complete: bool) -> str:
    """All tables, or without `complete` those of the projector at 7B widths and of the model."""
    parts = []
    for by_benchmark in newest(results).values():
        for what, table in (("projector", projector_table), ("model", model_table), ("ops", ops_table)):
            if what in by_benchmark and by_benchmark[what].rows and (complete or what != "ops"):
                result = by_benchmark[what]
                parts += [table(result, complete=complete), conditions(result)]
        if complete:
            lines = target_lines(list(by_benchmark.values()))
            parts.append("Targets:\n\n" + "\n".join(f"* {line}" for line in lines))
    return "\n\n".join(parts) or NOT_MEASURED


def conditions(result: Results) -> str:
    """Where, when and by what script a table was measured."""
    machine, rates = result.machine, result.rates
    return (
        f"{machine.gpu}, driver {machine.driver}, CUDA {machine.cuda}, torch {machine.torch}, triton {machine.triton}, "
        f"{result.date}, commit {machine.commit}, `kernels/benchmarks/bench_{result.what}.py`. The card's own rates: "
        f"copy {rates.copy_tb_s:.2f} TB/s, matrix product {rates.matmul_tflop_s:.0f} TFLOP/s."
    )


def projector_table(result: Results, *, complete: bool) -> str:
    """Times of all implementations, ours over theirs, share of the floor, peak memory."""
    header = [
        "projector", "B", "ours, ms", "eager", "Conv2d", "torch.compile", "eager / ours", "compile / ours",
        "of the floor", "peak MiB: ours", "eager",
    ]  # fmt: skip
    lines = []
    for case in _sizes(result.rows):
        if not complete and (case["model"], case["direction"]) != ("7b", "forward"):
            continue
        ours, eager, conv = (only(result.rows, **case, implementation=name) for name in ("ours", "eager", "conv"))
        lines.append([
            f"{str(case['model']).upper()} {case['direction']}, {case['dtype']}",
            str(case["batch"]),
            *_times(ours, eager, conv),
            _number(compiled_ms(result.rows, **case), 3),
            _number(ratio(result.rows, "eager", **case), 2),
            _number(ratio(result.rows, "compile", **case), 2),
            _percent(ours, result),
            _mebibytes(ours),
            _mebibytes(eager),
        ])  # fmt: skip
    return _table(header, lines)


def ops_table(result: Results, *, complete: bool) -> str:
    """Each operation: times, achieved rate and share of the floor."""
    header = [
        "operation", "B", "ours, ms", "graph", "rate", "of the floor", "eager, ms", "Conv2d", "torch.compile",
        "eager / ours", "compile / ours",
    ]  # fmt: skip
    lines = []
    for case in _sizes(result.rows):
        ours, eager, conv = (only(result.rows, **case, implementation=name) for name in ("ours", "eager", "conv"))
        lines.append([
            f"`{case['op']}` {str(case['model']).upper()} {case['direction']}, {case['dtype']}",
            str(case["batch"]),
            *_times(ours),
            _number(None if ours is None else ours.graph_ms, 4),
            _rate(ours),
            _percent(ours, result),
            *_times(eager, conv),
            _number(compiled_ms(result.rows, **case), 3),
            _number(ratio(result.rows, "eager", **case), 2),
            _number(ratio(result.rows, "compile", **case), 2),
        ])  # fmt: skip
    return _table(header, lines)


def model_table(result: Results, *, complete: bool) -> str:
    """Milliseconds of the parts and of the whole way to the first token."""
    header = ["model", "B", "tokens", "tower, ms", "projector", "prefill", "first token", "ratio", "compiled", "ratio"]
    lines = []
    sizes = dict.fromkeys((str(row.case["model"]), int(row.case["batch"])) for row in result.rows)
    for model, batch in sorted(sizes):
        projector = MODELS[model].projector
        for tokens in (projector.patches, projector.tokens):
            rows = select(result.rows, model=model, batch=batch, tokens=tokens)
            line = [model.upper(), str(batch), str(tokens)]
            line += _times(*(only(rows, part=part, mode="eager") for part in ("tower", "projector", "prefill")))
            for mode in ("eager", "compiled"):
                faster = first_token_ratio(result.rows, model=model, batch=batch, mode=mode)
                line += _times(only(rows, part="first_token", mode=mode))
                line.append(_number(faster if tokens == projector.tokens else None, 2))
            lines.append(line)
    return _table(header, lines)


def _sizes(rows: list[Row]) -> list[dict[str, str | int]]:
    """The measured cases without their implementations, sorted for reading."""
    cases = [{name: value for name, value in row.case.items() if name != "implementation"} for row in rows]
    unique = {tuple(case.items()): case for case in cases}.values()
    order = ("op", "dtype", "model", "direction", "batch")
    return sorted(unique, key=lambda case: (str(case["model"]) != "7b", *(case[name] for name in order)))


def _times(*rows: Row | None) -> list[str]:
    return [_number(None if row is None else row.ms, 3) for row in rows]


def _number(value: float | None, digits: int) -> str:
    return EMPTY if value is None else f"{value:.{digits}f}"


def _percent(row: Row | None, result: Results) -> str:
    return EMPTY if row is None else f"{100 * row.floor_share(result.rates):.0f} %"


def _mebibytes(row: Row | None) -> str:
    return EMPTY if row is None or row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"


def _rate(row: Row | None) -> str:
    if row is None:
        return EMPTY
    return f"{row.flops / row.best_ms / 1e9:.0f} TFLOP/s" if row.flops else f"{row.bytes / row.best_ms / 1e9:.2f} TB/s"


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def replaced(text: str, table: str) -> str:
    """`text` with `table` between the markers. Raises `ValueError` unless there is one pair of them."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in after:
        raise ValueError(f"expected one {START} and one {END} behind it")
    return f"{before}{START}\n{table}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the result files")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file with the short tables")
    parser.add_argument(
        "--kernels-readme", type=Path, default=ROOT / "kernels" / "README.md", help="file with the complete tables"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a file is out of date")
    options = parser.parse_args()
    stale = []
    results = all_results(options.results)
    for path, complete in ((options.readme, False), (options.kernels_readme, True)):
        text = path.read_text(encoding="utf-8")
        wanted = replaced(text, markdown(results, complete=complete))
        if wanted != text:
            stale.append(path)
            if not options.check:
                path.write_text(wanted, encoding="utf-8")
    for path in stale:
        print(f"{path} {'is out of date: run kernels/benchmarks/tables.py' if options.check else 'written'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"tables: {error}")
