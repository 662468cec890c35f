"""`llava-stf ask`: the answer of the Python call, as text or JSON, from one image or several."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_stf import load_model


def test_ask_prints_the_answer_alone(run: Callable[..., Any], stf_folder: Path, images: list[Path]) -> None:
    result = run("ask", images[0], "What?", "--model", stf_folder, "--max-new-tokens", 12)
    answer = load_model(stf_folder).ask(images[0], "What?", max_new_tokens=12)
    assert (result.code, result.out.strip(), result.err) == (0, answer, "")


def test_ask_about_two_images_as_json(run: Callable[..., Any], stf_folder: Path, images: list[Path]) -> None:
    arguments = ["ask", images[0], "The same?", "--also", images[1], "--model", stf_folder, "--max-new-tokens", 6]
    result = run(*arguments, "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == {
        "model": str(stf_folder),
        "images": [str(image) for image in images],
        "question": "The same?",
        "answer": load_model(stf_folder).ask(images, "The same?", max_new_tokens=6),
        "vision_tokens_per_image": 4,
    }


@pytest.mark.parametrize(("asked", "tokens"), [([], 4), (["--vision-tokens", "all"], 16), (["--vision-tokens", 1], 1)])
def test_the_options_reach_the_model(
    run: Callable[..., Any], plain_folder: Path, images: list[Path], asked: list[object], tokens: int
) -> None:
    options = ["--model", plain_folder, "--dtype", "bfloat16", "--device", "cpu", "--max-new-tokens", 2, "--json"]
    result = run("ask", images[0], "What?", *options, *asked)
    assert result.code == 0
    assert json.loads(result.out)["vision_tokens_per_image"] == tokens


@pytest.mark.parametrize("dtype", ["auto", "stored"])
def test_the_precisions_of_the_loader_may_be_asked_for(
    run: Callable[..., Any], stf_folder: Path, images: list[Path], dtype: str
) -> None:
    assert run("ask", images[0], "What?", "--model", stf_folder, "--dtype", dtype, "--max-new-tokens", 1).code == 0


@pytest.mark.parametrize("model", ["tiny", "tiny-full"])
def test_a_bundled_model_says_what_it_cannot_do(run: Callable[..., Any], images: list[Path], model: str) -> None:
    result = run("ask", images[0], "How many shapes are there?", "--model", model, "--max-new-tokens", 4)
    assert result.code == 0
    assert result.err.count("\n") == 1
    assert f"'{model}' knows only images drawn by llava_stf" in result.err
    assert "--model llava-hf/" in result.err


def test_tiny_is_the_default(run: Callable[..., Any], images: list[Path]) -> None:
    result = run("ask", images[0], "How many shapes are there?", "--max-new-tokens", 4, "--json")
    assert json.loads(result.out)["model"] == "tiny"
    assert "'tiny' knows only" in result.err
