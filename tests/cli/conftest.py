"""The command line as a function, and an image file to ask about."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `llava-stf` with these arguments in this process."""
    from llava_stf.cli import main

    def run_main(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run_main


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two image files."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    files = [folder / "one.png", folder / "two.jpg"]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(file)
    return files
