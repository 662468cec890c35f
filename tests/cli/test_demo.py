"""`llava-stf demo` with the bundled models: the tables, the JSON and the figure tell the same."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from llava_stf.cli.common import figure_path
from llava_stf.errors import LlavaStfError
from llava_stf.io.publish import write_figure
from llava_stf.world import ALL


def test_the_demo_asks_both_models_about_every_family(run: Callable[..., Any], tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    result = run("demo", "--output", figure, "--json")
    assert (result.code, result.err) == (0, "")
    record = json.loads(result.out)
    full, fused = record["models"]["tiny-full"], record["models"]["tiny"]
    assert full["vision_tokens"] == 4 * fused["vision_tokens"]
    assert 0.2 < record["chance"] < 0.5
    assert min(full["first_token_seconds"], fused["first_token_seconds"]) > 0
    questions = [question for shown in record["images"] for question in shown["questions"]]
    assert {question["family"] for question in questions} == set(ALL)
    assert all(question["full"] and question["fused"] and question["reference"] for question in questions)
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert image.width > 1000


def test_the_tables_show_tokens_and_answers(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("demo", "--seed", 3, "--count", 1, "--output", tmp_path / "figure.png")
    assert result.code == 0
    for words in (
        "6 of 7 answers",
        "of seed 3",
        "right answer",
        "25 %",
        "tiny-full",
        "median time to first",
        "figure.png",
    ):
        assert words in result.out
    assert re.search(r"By chance, .* \d\d% are right", result.out)
    assert len(re.findall("[✓✗]", result.out)) == 12  # both answers to six questions


def test_own_images_and_questions(run: Callable[..., Any], images: list[Path], tmp_path: Path) -> None:
    arguments = ["--image", images[0], "--image", images[1], "--question", "What is this?"]
    result = run("demo", *arguments, "--output", tmp_path / "figure.png", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert [image["source"] for image in record["images"]] == [str(image) for image in images]
    assert [q["question"] for image in record["images"] for q in image["questions"]] == ["What is this?"] * 2
    assert "knows only images drawn" in result.err


def test_a_figure_takes_no_other_files_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert figure_path(None, "demo.png") == Path("demo.png")
    Image.new("RGB", (2, 2)).save("demo.png")
    Path("demo-2.png").write_text("no image")
    Path("demo-3.png").symlink_to("nowhere")
    assert figure_path(None, "demo.png") == Path("demo-4.png")
    write_figure(Path("demo-4.png"), Figure())
    assert figure_path(None, "demo.png") == Path("demo-4.png")  # ours, of an earlier run
    assert figure_path(Path("demo-4.png"), "demo.png") == Path("demo-4.png")
    for name in ("demo.png", "demo-2.png", "demo-3.png"):
        with pytest.raises(LlavaStfError, match=f"{name} is no figure of llava-stf and is not overwritten"):
            figure_path(Path(name), "demo.png")


@pytest.mark.parametrize("command", [["show", "{image}"], ["demo"]])
def test_commands_refuse_before_a_model_is_loaded(
    run: Callable[..., Any], images: list[Path], tmp_path: Path, command: list[str]
) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(images[0].read_bytes())
    result = run(*(word.format(image=images[0]) for word in command), "--output", mine)
    assert (result.code, result.out) == (2, "")
    assert "is not overwritten" in result.err
    assert mine.read_bytes() == images[0].read_bytes()
    result = run(*(word.format(image=images[0]) for word in command), "--output", "/proc/self/figure.png")
    assert (result.code, result.out) == (2, "")
    assert "/proc/self cannot be written to" in result.err
