"""`llava-stf convert` writes what `convert_checkpoint` does, and says so on stderr alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava_stf import load_model


def test_to_the_authors_format_and_back(
    run: Callable[..., Any], stf_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    original, back = tmp_path / "original", tmp_path / "back"
    result = run("convert", stf_folder, original, "--to", "original")
    assert (result.code, result.out, result.err) == (0, "", f"wrote {original}\n")
    assert run("convert", original, back).code == 0
    before, after = (load_model(folder).ask(images[0], "What?", max_new_tokens=8) for folder in (stf_folder, back))
    assert before == after
