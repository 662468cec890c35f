"""`llava-stf batch` prints one JSON object, keeps stdout clean, and refuses bad input in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_stf.cli import main

from .conftest import QUESTION, results

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `llava-stf batch` with these arguments in this process: exit code, stdout, stderr."""

    def run_main(*arguments: object) -> tuple[int, str, str]:
        code = main(["batch", *map(str, arguments)])
        return (code, *capfd.readouterr())

    return run_main


def test_folder_is_answered_and_the_same_command_finds_it_done(run: Run, album: Path, tmp_path: Path) -> None:
    arguments = album, tmp_path / "out", "--question", QUESTION, "--shard-size", 10, "--max-new-tokens", 8
    code, out, err = run(*arguments)
    assert code == 0, err
    summary = json.loads(out)
    seconds = summary.pop("seconds")
    assert summary == {"output": str(tmp_path / "out"), "rows": 24, "errors": 0, "rows_now": 24}
    assert seconds > 0
    assert err.splitlines()[1:] == ["0 of 24 rows", "10 of 24 rows", "20 of 24 rows", "24 of 24 rows"]
    assert sum(row["answer"].isdecimal() for row in results(tmp_path / "out")) == 24
    code, out, err = run(*arguments)
    assert (code, json.loads(out)["rows_now"]) == (0, 0)
    code, out, err = run(*arguments[:3], "Is there a star?", *arguments[4:])
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(
        f"{tmp_path / 'out'} is the output of another command (question was How many"
    )


def test_rows_with_errors_are_counted_and_no_failure(
    run: Run, lines: Callable[..., Path], album: Path, tmp_path: Path
) -> None:
    path = lines({"id": 1, "image": "missing.png", "question": "?"}, "{", {"image": "01.png", "question": "?"})
    code, out, _ = run(path, tmp_path / "out", "--images", album, "--max-new-tokens", 1)
    assert (code, json.loads(out)["rows"], json.loads(out)["errors"]) == (0, 3, 2)


def test_a_batch_without_a_single_answer_is_a_failure(run: Run, lines: Callable[..., Path], tmp_path: Path) -> None:
    path = lines({"id": 1, "image": "missing.png", "question": "?"}, "{")
    code, out, err = run(path, tmp_path / "out")
    assert (code, json.loads(out)["rows"], json.loads(out)["errors"]) == (2, 2, 2)
    assert err.splitlines()[-1].startswith("No row has an answer")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shard-size", 0], "Invalid value for '--shard-size'"),
        (["--workers", 2], "--ray-engine and --workers are for --engine ray"),
        (["--vllm-option", "enforce_eager=true"], "vllm_options are for the engine vllm, found transformers"),
        (["--engine", "vllm", "--vllm-option", "eager"], "expected an option such as tensor_parallel_size=2"),
        (["--model", "nowhere"], "No model 'nowhere'"),
        (["--images", "."], "holds the images itself"),
    ],
    ids=["shard-size", "workers", "vllm", "vllm-option", "model", "images"],
)
def test_bad_options_are_refused_in_one_sentence(
    run: Run, album: Path, tmp_path: Path, arguments: list[object], sentence: str
) -> None:
    code, out, err = run(album, tmp_path / "out", "--question", QUESTION, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err.splitlines()[-1]
    assert "Traceback" not in err
