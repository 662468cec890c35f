"""`llava-stf bench tasks | speed | compare | turns | serve`, which the command line finds by its entry point.

Only typer is imported here; what a command needs is imported when it runs.
"""

import typer

from llava_stf_eval.cli.compare import compare
from llava_stf_eval.cli.serve import serve
from llava_stf_eval.cli.speed import speed
from llava_stf_eval.cli.tasks import tasks
from llava_stf_eval.cli.turns import turns

bench = typer.Typer(help="Measure models: scores on benchmarks, speed, comparisons.", no_args_is_help=True)
for command in (tasks, speed, compare, turns, serve):
    bench.command()(command)
