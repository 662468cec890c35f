"""The whole projector, MBTF and STF, from the tower's states to the LLM's tokens: ours against the plain formulations.

    python kernels/benchmarks/bench_projector.py                 # on a GPU; goes on where an earlier run ended

Backward is that of training with a frozen tower: the gradients of all weights, none of the states. Peak memory then
includes the weights' gradients, which are the same for all. Without a CUDA device it prints the floors and measures
nothing. Exit status: 0 done, 1 a case failed, 3 out of budget.
"""

from __future__ import annotations

import sys

from bench_ops import parse_options, run
from targets import target_lines


def main() -> int:
    session, status = run("projector", parse_options(__doc__, ["projector"]))
    if session is not None:
        print("\n".join(target_lines([session.results])))
    return status


if __name__ == "__main__":
    sys.exit(main())
