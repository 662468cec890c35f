"""`accelerate launch -m llava_stf.encoders.pretrain --method patchmix --config FILE.yaml [--field value ...]`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_stf.encoders.pretrain.config import parse
from llava_stf.io.command import exit_code, log_training
from llava_stf.io.runs import describe_newest
from llava_stf.io.signals import keeping

logger = logging.getLogger("llava_stf.encoders.pretrain")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when trained, 2 with one sentence on stderr for an error of the user's."""
    log_training()

    def work() -> None:
        config = parse(sys.argv[1:] if argv is None else argv)
        from llava_stf.encoders.pretrain.loop import pretrain

        with keeping(lambda: f"{describe_newest(Path(config.output))}; go on with --resume"):
            folder = pretrain(config)
        if folder is not None and os.environ.get("RANK", "0") == "0":
            _say_how_to_use(folder)

    return exit_code(work)


def _say_how_to_use(folder: Path) -> None:
    name = shlex.quote(str(folder))
    logger.info("the trained encoder is in %s: llava-stf encoders eval knn %s --data DATA measures it", folder, name)
    logger.info("a LLaVA with it: llava-stf assemble FOLDER --vision-encoder %s --language-model MODEL", name)


if __name__ == "__main__":
    sys.exit(main())
