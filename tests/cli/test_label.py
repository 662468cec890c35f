"""`llava-stf data label` answers, survives `kill -9`, and refuses bad input before a model is loaded."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_stf import load_model
from llava_stf.world import draw

QUESTIONS = ("How many shapes are there?", "Is there a red circle?", "Is there a star?", "What shape is red?")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 25 drawn images that the bundled models have not seen."""
    folder = tmp_path_factory.mktemp("album")
    for index in range(25):
        Image.fromarray(draw(index, split="held_out")[1]).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(QUESTIONS))
    return path


def rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_run_killed_twice_ends_with_the_file_of_one_that_was_not(
    run: Callable[..., Any], start: Callable[..., Any], album: Path, prompts: Path, tmp_path: Path
) -> None:
    options = ("--prompts", prompts, "--batch-size", 4, "--dtype", "float32", "--max-new-tokens", 8)
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    for least in (1, 50):
        process = start(["data", "label", album, killed, *options])
        deadline = time.monotonic() + 90
        while rows(killed) < least:
            assert process.exitcode is None, process.exitcode
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.kill()
        process.join()
        assert least <= rows(killed) < 100
    before = rows(killed)
    result = run("data", "label", album, killed, *options)
    assert result.code == 0, result.err
    assert result.out.startswith(f"{killed}: 100 samples, {100 - before} of them answered now in ")
    assert run("data", "label", album, whole, *options).code == 0
    assert killed.read_bytes() == whole.read_bytes()
    again = run("data", "label", album, killed, *options)
    assert (again.code, again.out, again.err) == (0, f"{killed} has all 100 answers already\n", "")


def test_output_is_training_data_as_it_is(run: Callable[..., Any], album: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run("data", "label", album, output, "--prompt", QUESTIONS[0], "--part", "2/5").code == 0
    assert rows(output) == 5
    result = run("data", "check", output, "--images", album, "--workers", 0)
    assert (result.code, result.out.splitlines()[0].split(" read")[0]) == (0, "5 samples"), result.out
    first = json.loads(output.read_text().splitlines()[0])
    assert (first["image"], first["teacher"]["model"]) == ("01.png", "tiny-full")
    assert first["teacher"]["dtype"] == str(load_model("tiny-full", device="cpu").model.dtype).removeprefix("torch.")
    assert first["teacher"]["device"] == "cpu"
    assert int(first["conversations"][1]["value"]) in range(1, 10)


def test_precisions_are_not_mixed(run: Callable[..., Any], album: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    label = ("data", "label", album, output, "--prompt", QUESTIONS[0], "--device", "cpu", "--dtype")
    assert run(*label, "float32", "--max-new-tokens", 4).code == 0
    whole = output.read_bytes()
    assert json.loads(whole.splitlines()[0])["teacher"]["dtype"] == "float32"
    output.write_bytes(whole[: whole.index(b"\n") + 1])
    result = run(*label, "bfloat16", "--max-new-tokens", 4)
    assert (result.code, result.out) == (2, "")
    assert "holds answers with dtype float32, this run bfloat16: name another file" in result.err
    output.write_bytes(output.read_bytes().replace(b'"float32", "device": "cpu"', b"null"))  # as it was written before
    assert run(*label, "float32", "--max-new-tokens", 4).code == 0
    assert rows(output) == 25


def test_left_out_images_are_named_and_counted(
    run: Callable[..., Any], caplog: pytest.LogCaptureFixture, album: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    (folder / "a.png").write_bytes((album / "00.png").read_bytes())
    (folder / "b.png").write_bytes(b"torn")
    options = ("--prompt", QUESTIONS[0], "--model", "tiny", "--vision-tokens", 16)
    stopped = run("data", "label", folder, tmp_path / "out.jsonl", *options)
    assert (stopped.code, stopped.out) == (2, "")
    assert "b.png is empty or not an image" in stopped.err
    result = run("data", "label", folder, tmp_path / "out.jsonl", *options, "--max-bad-samples", 0.5)
    assert result.code == 0
    assert ": 1 samples, 1 of them answered now" in result.out
    assert result.out.endswith("; left out: 1 of 2 samples seen are bad (1 broken image)\n")
    assert "b.png#0" in caplog.text


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("llava_stf.cli.label.load", load)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere", "out.jsonl"), "cannot read the data file nowhere"),
        (("nothing", "out.jsonl"), "the folder nothing holds no image"),
        (("pictures", "out.jsonl", "--prompt", " "), "a prompt needs words"),
        (("pictures", "out.jsonl", "--prompts", "nowhere.txt"), "cannot read the prompts in nowhere.txt"),
        (("pictures", "out.jsonl", "--prompt", "A?", "--prompts", "nowhere.txt"), "not from both"),
        (("questions.json", "out.jsonl", "--prompt", "A?"), "questions.json is none"),
        (("questions.json", "out.jsonl", "--images", "nowhere"), "the image folder nowhere does not exist"),
        (("pictures", "out.jsonl", "--images", "nothing"), "cannot start from nothing"),
        (("pictures", "nowhere/out.jsonl"), "cannot write the answers to nowhere/out.jsonl: No such file"),
        (("pictures", "nothing"), "the answers need a file"),
        (("pictures", "/dev/full"), "the answers need a file"),
        (("questions.json", "questions.json"), "something else than answers"),
        (("pictures", "out.jsonl", "--part", "3/2"), "expected a part such as 2/4"),
        (("questions.json", "out.jsonl", "--part", "2/4"), "part 2/4 is empty: the questions are 1"),
        (("questions.json", "out.jsonl", "--images", "questions.json"), "the image folder questions.json is no folder"),
    ],
)
def test_user_errors_are_2_in_one_sentence_before_a_model_is_loaded(
    run: Callable[..., Any], images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(images[0].parent)
    Path("nothing").mkdir()
    content = json.dumps([{"image": "one.png", "conversations": [{"from": "human", "value": "<image>\nA?"}]}])
    Path("questions.json").write_text(content)
    result = run("data", "label", *arguments)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert not Path("out.jsonl").exists()
    assert Path("questions.json").read_text() == content


def test_model_that_is_missing_leaves_no_file(run: Callable[..., Any], album: Path, tmp_path: Path) -> None:
    result = run("data", "label", album, tmp_path / "out.jsonl", "--model", tmp_path / "none")
    assert (result.code, result.out) == (2, "")
    assert not list(tmp_path.iterdir())
