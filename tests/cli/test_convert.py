"""`llava-stf convert` writes what `convert_checkpoint` does, and says so on stderr alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

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


def test_a_bundled_model_is_converted_as_other_commands_take_it(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("convert", "tiny", tmp_path / "dst", "--to", "original")
    assert (result.code, result.err.splitlines()[-1]) == (0, f"wrote {tmp_path / 'dst'}")
    assert load_file(tmp_path / "dst" / "model.safetensors")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["convert", "nosuch", "{tmp}/out"], "No model 'nosuch'"),
        (["convert", "tiny", "{tmp}"], "exists already and is not overwritten"),
        (["convert", "tiny", "{tmp}/out", "--base", "nosuch"], "No model 'nosuch'"),
        (["ask", "{image}", "What?", "--model", "nosuch"], "No model 'nosuch'"),
        (["batch", "{tmp}", "{tmp}/out", "--model", "nosuch"], "No model 'nosuch'"),
    ],
)
def test_paths_are_looked_at_before_torch_is_imported(
    images: list[Path], tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [argument.format(tmp=tmp_path, image=images[0]) for argument in arguments]
    code = (
        f"import sys; from llava_stf.cli import main; code = main({given!r}); sys.exit('torch' in sys.modules or code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
