"""Two builds of the server side by side: both run, and are asked in turns under the same load.

    git worktree add ../before REVISION
    python -m llava_stf_eval.measurement.server_builds ../before --model tiny --rounds 5

`--shape medium` in place of a model has random weights. Each client asks again when it is answered, for answers whose
lengths are drawn evenly. Prints a line for each build: requests a second, the median of the rounds; seconds that the
server computed for a request; and times to the first token and between tokens of all rounds, p50 / p99.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers.utils.logging import disable_progress_bar

from llava_stf.errors import LlavaStfError
from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf_eval.measurement.checkout import checkout
from llava_stf_eval.measurement.process import computed
from llava_stf_eval.serving.client import Target, drive
from llava_stf_eval.serving.models import prepare, prepare_shape
from llava_stf_eval.serving.outcomes import Outcome, summarise
from llava_stf_eval.serving.servers import serving
from llava_stf_eval.serving.workload import Load, lengths, questions
from llava_stf_eval.speed.shapes import SHAPES

HERE = Path(__file__).parents[3]
PARTS = ("", "kernels", "eval")  # of a checkout, where its packages lie


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("before", type=Path, help="checkout of the other build")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--clients", type=count, default=16)
    parser.add_argument("--new-tokens", type=count, nargs=2, default=(8, 128), metavar=("SHORTEST", "LONGEST"))
    parser.add_argument("--requests", type=count, default=64, help="of a round")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--server-arguments", nargs="*", default=[], help="of both, without their dashes: max-batch 8")
    options = parser.parse_args()
    disable_progress_bar()
    builds = {"before": checkout(options.before), "now": HERE}
    if len(options.server_arguments) % 2:
        raise LlavaStfError(f"Expected pairs of name and value for the servers, found {options.server_arguments}.")
    pairs = zip(options.server_arguments[::2], options.server_arguments[1::2], strict=True)
    arguments = [part for name, value in pairs for part in (f"--{name}", value)]
    with TemporaryDirectory(prefix="llava_stf_builds_") as work, ExitStack() as stack:
        folder = Path(work) / "model"
        model = prepare_shape(options.shape, None, folder) if options.shape else prepare(options.model, folder)
        targets = {}
        for name, build in builds.items():
            path = os.pathsep.join(str(build / part) for part in PARTS)
            environment, log = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}, Path(work) / f"{name}.log"
            target = serving("transformers", model, arguments=arguments, environment=environment, log=log)
            targets[name] = stack.enter_context(target)
        _measure(targets, options)


def _measure(targets: dict[str, Target], options: argparse.Namespace) -> None:
    asked = questions(None, 0, options.requests * options.rounds * 2 + options.clients * 2)
    load, (shortest, longest) = Load(clients=options.clients), options.new_tokens
    for target in targets.values():
        drive(target, list(itertools.islice(asked, options.clients)), load, new_tokens=shortest, seed=0)
    found: dict[str, list[tuple[list[Outcome], float]]] = {name: [] for name in targets}
    for number in range(options.rounds):
        of_answers = lengths(options.requests, shortest, longest, seed=number)
        for name, target in targets.items():
            batch = list(itertools.islice(asked, options.requests))
            before = computed(target.process)
            outcomes = drive(target, batch, load, new_tokens=of_answers, seed=number)
            found[name].append((outcomes, (computed(target.process) - before) / len(outcomes)))
            print(f"{name}, round {number}: {summarise(outcomes)['requests_per_second']:.3g} requests/s", flush=True)
    for name, rounds in found.items():
        print(name, _line(rounds), flush=True)


def _line(rounds: list[tuple[list[Outcome], float]]) -> str:
    each = [summarise(outcomes) for outcomes, _ in rounds]
    whole: dict[str, Any] = summarise([outcome for outcomes, _ in rounds for outcome in outcomes])
    rate = statistics.median(summary["requests_per_second"] for summary in each)
    spent = statistics.median(seconds for _, seconds in rounds)
    first, between = whole["first_token_ms"], whole["inter_token_ms"]
    return (
        f"{rate:.3g} requests/s, {spent:.3f} CPU s a request, first token {first['p50']:,.0f} / {first['p99']:,.0f} "
        f"ms, between tokens {between['p50']:.0f} / {between['p99']:.0f} ms, {whole['failed']} failed"
    )


if __name__ == "__main__":
    run(main)
