"""`llava-stf bench compare A B`: what changed from one benchmark run to another, and whether it is more than chance."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a run of `bench tasks`: the one to compare with.")],
    b: Annotated[Path, typer.Argument(help="Folder of the other run.")],
    output: Annotated[
        Path | None, typer.Option(help="Write the answers that flipped to this .html or .jsonl file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Difference per benchmark with 95 % bootstrap intervals, and the answers that flipped.

    Only questions that both runs answered count; runs of different protocols or data are refused.
    """
    import json

    from llava_stf.cli.common import waiting
    from llava_stf_eval.report.compare import compare_runs
    from llava_stf_eval.report.comparison import as_record, check_output, print_comparison, write_comparison
    from llava_stf_eval.report.runs import load_runs

    if output is not None:
        check_output(output)
    with waiting("Comparing"):
        comparison = compare_runs(*load_runs([a, b]), seed=seed)
        if output is not None:
            write_comparison(comparison, output)
    if as_json:
        print(json.dumps(as_record(comparison), ensure_ascii=False))
        return
    print_comparison(comparison)
    if output is not None:
        print(f"Written: {output}")
