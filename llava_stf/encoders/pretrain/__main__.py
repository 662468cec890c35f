"""`accelerate launch -m llava_stf.encoders.pretrain --method patchmix --config FILE.yaml [--field value ...]`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_stf.encoders.pretrain.config import parse
from llava_stf.io.command import exit_code
from llava_stf.io.runs import describe_newest
from llava_stf.io.signals import keeping


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when trained, 2 with one sentence on stderr for an error of the user's."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")

    def work() -> None:
        config = parse(sys.argv[1:] if argv is None else argv)
        from llava_stf.encoders.pretrain.loop import pretrain

        with keeping(lambda: f"{describe_newest(Path(config.output))}; go on with --resume"):
            pretrain(config)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
