"""Write a run's report again, with other runs beside it if given.

python -m llava_stf_eval.report runs/full runs/stf
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llava_stf.errors import LlavaStfError
from llava_stf_eval.report import load_runs, print_scores, write_report


def main() -> int:
    """Write the report of the runs on the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the run whose folder gets the report")
    parser.add_argument("others", type=Path, nargs="*", help="runs to put beside it")
    options = parser.parse_args()
    try:
        written = write_report(options.folder, options.others)
        print_scores(load_runs([options.folder, *options.others]))
    except LlavaStfError as error:
        print(error, file=sys.stderr)
        return 2
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
