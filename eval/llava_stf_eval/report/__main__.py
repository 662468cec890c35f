"""Write a run's report again, with other runs beside it if given.

python -m llava_stf_eval.report runs/full runs/stf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_stf.io.command import run
from llava_stf_eval.report import load_runs, print_scores, write_report


def main() -> None:
    """Write the report of the runs on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the run whose folder gets the report")
    parser.add_argument("others", type=Path, nargs="*", help="runs to put beside it")
    options = parser.parse_args()
    written = write_report(options.folder, options.others)
    print_scores(load_runs([options.folder, *options.others]))
    print(*written, sep="\n")


if __name__ == "__main__":
    run(main)
