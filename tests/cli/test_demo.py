"""`llava-stf demo` with the bundled models: the tables, the JSON and the figure tell the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from llava_stf.world import ALL


def test_the_demo_asks_both_models_about_every_family(run: Callable[..., Any], tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    result = run("demo", "--output", figure, "--json")
    assert (result.code, result.err) == (0, "")
    record = json.loads(result.out)
    full, fused = record["models"]["tiny-full"], record["models"]["tiny"]
    assert full["vision_tokens"] == 4 * fused["vision_tokens"]
    assert min(full["first_token_seconds"], fused["first_token_seconds"]) > 0
    questions = [question for shown in record["pictures"] for question in shown["questions"]]
    assert {question["family"] for question in questions} == set(ALL)
    assert all(question["full"] and question["fused"] and question["reference"] for question in questions)
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert image.width > 1000


def test_the_tables_show_tokens_and_answers(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("demo", "--seed", 3, "--count", 1, "--output", tmp_path / "figure.png")
    assert result.code == 0
    for words in ("of seed 3", "reference", "100 %", "25 %", "tiny-full", "median time to first token", "figure.png"):
        assert words in result.out


def test_own_images_and_questions(run: Callable[..., Any], images: list[Path], tmp_path: Path) -> None:
    arguments = ["--image", images[0], "--image", images[1], "--question", "What is this?"]
    result = run("demo", *arguments, "--output", tmp_path / "figure.png", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert [image["source"] for image in record["pictures"]] == [str(image) for image in images]
    assert [q["question"] for image in record["pictures"] for q in image["questions"]] == ["What is this?"] * 2
    assert "knows only images drawn" in result.err
