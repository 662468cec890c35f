"""`llava-stf chat` from a pipe: a question a line, with all turns and images before it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_stf import load_model


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], stf_folder: Path) -> Callable[..., Any]:
    """Runs a chat with these lines on stdin."""

    def say_lines(lines: str, *arguments: object) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return run("chat", *arguments, "--model", stf_folder, "--max-new-tokens", 6)

    return say_lines


def test_turns_and_images_build_on_each_other(say: Callable[..., Any], stf_folder: Path, images: list[Path]) -> None:
    result = say(f"One?\n\n/image {images[1]}\nTwo?\n/quit\nnever asked\n", images[0], "--json")
    chat = load_model(stf_folder).chat(images[0])
    first = chat.ask("One?", max_new_tokens=6)
    chat.add_image(images[1])
    second = chat.ask("Two?", max_new_tokens=6)
    assert (result.code, result.err) == (0, "")
    assert [json.loads(line) for line in result.out.splitlines()] == [
        {"question": "One?", "answer": first},
        {"question": "Two?", "answer": second},
    ]


def test_answers_are_printed_a_line_each(say: Callable[..., Any], stf_folder: Path, images: list[Path]) -> None:
    result = say("One?\n", *images)
    answer = load_model(stf_folder).chat(images).ask("One?", max_new_tokens=6)
    assert (result.code, result.out.strip()) == (0, answer)
    assert result.out.endswith("\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image missing.png", "missing.png"),
        ("/image", "is empty"),
        ("/imgae a.png", "no command /imgae"),
        ("x" * 600, "positions"),
    ],
)
def test_a_bad_line_from_a_pipe_is_a_sentence_and_the_chat_goes_on(
    say: Callable[..., Any], stf_folder: Path, images: list[Path], line: str, said: str
) -> None:
    result = say(f"\ufeff{line}\nOne?\n", images[0], "--json")
    refused, answered = map(json.loads, result.out.splitlines())
    assert (result.code, refused) == (2, {"question": line, "error": result.err.strip()})
    assert answered == {
        "question": "One?",
        "answer": load_model(stf_folder).chat(images[0]).ask("One?", max_new_tokens=6),
    }
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_text_in_another_encoding_than_the_terminals(
    encoding: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stf_folder: Path, images: list[Path]
) -> None:
    def say_bytes(line: bytes) -> Any:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line), encoding=encoding))
        return run("chat", images[0], "--json", "--max-new-tokens", 2, "--model", stf_folder)

    refused = say_bytes("caf\xe9?\n".encode("latin-1"))
    assert (refused.code, "answer" in refused.out) == (2, False)
    assert "no valid Unicode" in refused.err
    if encoding == "utf-8":
        answered = say_bytes("caf\xe9?\n".encode())
        assert (answered.code, json.loads(answered.out)["question"]) == (0, "caf\xe9?")
