"""`llava-stf bench compare`: what changed from one benchmark run to another, or many runs in one table and plot."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs of `bench tasks`; compared with the first.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Of two runs the answers that flipped, .html or .jsonl; of more the plot, .png."),
    ] = None,
    speed: Annotated[
        Path | None, typer.Option(help="Folder of `bench speed`: puts the first token beside the accuracy of all runs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Two runs: the difference per benchmark with 95 % bootstrap intervals, and the answers that flipped.

    More of them, or --speed: mean accuracy of each with its interval, against the time to the first token. Only runs of
    one protocol and the same data are compared.
    """
    if len(runs) < 2:
        raise typer.BadParameter("expected two runs or more")
    if len(runs) > 2 or speed is not None:
        _rank(runs, output, speed, seed, as_json)
        return
    import json

    from llava_stf.cli.common import waiting
    from llava_stf_eval.report.compare import compare_runs
    from llava_stf_eval.report.comparison import as_record, check_output, print_comparison, write_comparison
    from llava_stf_eval.report.runs import load_runs

    if output is not None:
        check_output(output)
    with waiting("Comparing"):
        comparison = compare_runs(*load_runs(runs), seed=seed)
        if output is not None:
            write_comparison(comparison, output)
    if as_json:
        print(json.dumps(as_record(comparison), ensure_ascii=False))
        return
    print_comparison(comparison)
    if output is not None:
        print(f"Written: {output}")


def _rank(runs: list[Path], output: Path | None, speed: Path | None, seed: int, as_json: bool) -> None:
    """All runs in one table, best first."""
    import json

    from llava_stf.cli.common import waiting
    from llava_stf_eval.report.comparison import check_output
    from llava_stf_eval.report.leaderboard import as_records, leaderboard, print_leaderboard, save_leaderboard
    from llava_stf_eval.report.runs import load_runs
    from llava_stf_eval.speed.output import RESULT

    if output is not None:
        check_output(output, suffixes=(".png",))
    with waiting("Comparing"):
        board = leaderboard(load_runs(runs), speed=None if speed is None else speed / RESULT, seed=seed)
        if output is not None:
            save_leaderboard(board, output)
    if as_json:
        print(json.dumps({"speed": board.speed, "places": as_records(board)}, ensure_ascii=False))
        return
    print_leaderboard(board)
    if output is not None:
        print(f"Written: {output}")
