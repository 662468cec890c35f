"""`llava-stf data check` tells by its exit code whether training can use a data set, and by its output why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square, as far as one can see."}]


@pytest.fixture
def file(images: list[Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a data file with a sample per image name; the images one.png and two.jpg are in another folder."""

    def write(*names: str) -> Path:
        path = tmp_path / "data.json"
        path.write_text(json.dumps([{"id": name, "image": name, "conversations": TURNS} for name in names]))
        return path

    return write


def test_clean_data_is_0_with_its_lengths(
    run: Callable[..., Any], file: Callable[..., Path], images: list[Path]
) -> None:
    result = run("data", "check", file("one.png", "two.jpg"), "--images", images[0].parent, "--workers", 0)
    assert (result.code, result.err) == (0, "")
    assert "2 samples read" in result.out
    assert "0 are bad" in result.out
    assert "median" in result.out


def test_problems_are_1_with_counts_and_offenders(
    run: Callable[..., Any], file: Callable[..., Path], images: list[Path]
) -> None:
    options = ("--images", images[0].parent, "--workers", 0)
    result = run("data", "check", file("one.png", "gone.png"), *options)
    assert result.code == 1
    assert "missing image: 1" in result.out
    assert "sample gone.png of data.json (number 1)" in result.out


def test_json_counts_the_tokens_of_the_model_named(
    run: Callable[..., Any], file: Callable[..., Path], images: list[Path], plain_folder: Path
) -> None:
    options = ("--images", images[0].parent, "--workers", 0, "--json", "--max-length", 200)
    data = file("one.png", "gone.png")
    quarter, whole = (
        json.loads(run("data", "check", data, *options, "--model", plain_folder, *more).out)
        for more in ((), ("--vision-tokens", "all"))
    )
    assert whole["tokens"]["max"] == quarter["tokens"]["max"] + 12  # 16 patches, or four windows
    assert (quarter["samples"], quarter["bad"], quarter["longer_than_max_length"]) == (2, 1, 1)
    assert quarter["faults"]["missing image"]["first"][0]["id"] == "gone.png"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["none.json"], "cannot read the data file"), (["data.json", "--images", "nowhere"], "does not exist")],
)
def test_user_errors_are_2_in_one_sentence(
    run: Callable[..., Any], file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    file("one.png")
    result = run("data", "check", *arguments)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert result.err.count("\n") == 1
