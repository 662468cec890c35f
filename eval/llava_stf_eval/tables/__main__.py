"""Make the tables of README.md and the guides again, from the results that docs/ holds.

    python -m llava_stf_eval.tables             # in a clone: rewrites what is out of date, and names it
    python -m llava_stf_eval.tables --check     # exit status 1 where a page is; writes nothing

A table stands behind `<!-- table NAME -->`; what makes it says `llava_stf_eval.tables.pages`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llava_stf.io.command import run
from llava_stf_eval.tables.pages import write_pages


def main() -> None:
    """Write or check the pages of the clone that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path(), help="of the clone; default: where you are")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    changed = write_pages(options.root, check=options.check)
    print("\n".join(changed) or "All tables are up to date.")
    sys.exit(1 if options.check and changed else 0)


if __name__ == "__main__":
    run(main)
