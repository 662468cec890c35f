"""Time, memory and share of the floor of each operation, forward and (the fusing ones) backward.

    python kernels/benchmarks/bench_ops.py                       # on a GPU; goes on where an earlier run ended
    python kernels/benchmarks/bench_ops.py --widths tiny --dry-run --implementations ours eager conv   # on a CPU

Without a CUDA device it prints the floors and measures nothing. Exit status: 0 done, 1 a case failed, 3 out of budget.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch
from cases import BACKWARD, DIRECTIONS, DTYPES, check, measure, work_of
from competitors import COMPILE_MODES, IMPLEMENTATIONS, Operation, operations
from harness import Session, argument_parser, label, open_for, print_floors
from records import Case
from shapes import WIDTHS

OPS = ("fuse_blocks", "fuse_windows", "pool_tokens", "place_tokens")


def parse_options(
    description: str | None, ops: Sequence[str], arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The command line of a benchmark of `ops`."""
    parser = argument_parser(description)
    parser.add_argument("--ops", nargs="+", choices=ops, default=list(ops))
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=["7b", "13b"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64, 4], metavar="B", help="in this order")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    return parser.parse_args(arguments)


def cases_of(options: argparse.Namespace, available: dict[str, Operation]) -> Iterator[Case]:
    """In the order of the options; of each width and direction what is quick to measure before what is compiled.

    A case of the same work as one of earlier widths is left out: only `place_tokens` and the projector differ between
    7B and 13B.
    """
    seen = set()
    for model, direction, compiled in product(options.widths, options.directions, (False, True)):
        for batch, op, implementation in product(options.batches, options.ops, options.implementations):
            operation = available[op]
            if (implementation in COMPILE_MODES) is not compiled or (direction == BACKWARD and not operation.leaves):
                continue
            if implementation == "conv" and operation.conv is None:
                continue
            case: Case = {
                "model": model, "op": op, "direction": direction, "batch": batch, "dtype": options.dtype,
                "implementation": implementation,
            }  # fmt: skip
            kind = (op, direction, batch, implementation, work_of(case))
            if kind not in seen:
                seen.add(kind)
                yield case


def run(what: str, options: argparse.Namespace) -> tuple[Session | None, int]:
    """Measure the cases on a GPU; without one print their floors. The session, if any, and the exit status."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    available = operations("triton" if on_gpu else "torch")
    cases = list(cases_of(options, available))
    if options.dry_run:
        for case in cases:
            error = check(case, available[str(case["op"])], device)
            print(f"{label(case)}  agrees with the reference (relative error {error:.0e})")
        return None, 0
    if not on_gpu:
        sizes = [{name: case[name] for name in case if name != "implementation"} for case in cases]
        print_floors(((case, work_of(case)) for case in {label(size): size for size in sizes}.values()), options)
        return None, 0
    session = Session(open_for(what, DTYPES[options.dtype], options), options.budget)
    for case in cases:
        session.measure(case, partial(measure, case, available[str(case["op"])], device, options.seconds))
    return session, session.finish()


def main() -> int:
    _, status = run("ops", parse_options(__doc__, OPS))
    return status


if __name__ == "__main__":
    sys.exit(main())
