"""Exit codes, the one sentence of a user's error, and how light the command line is to start."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_stf import __version__

COMMAND = (sys.executable, "-c", "import sys; from llava_stf.cli import main; sys.exit(main())")


def heed_interrupts() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_version(run: Callable[..., Any]) -> None:
    assert run("--version") == (0, f"llava-stf {__version__}\n", "")


def test_help_names_every_command(run: Callable[..., Any]) -> None:
    for arguments, code in ((["--help"], 0), ([], 2)):
        result = run(*arguments)
        assert result.code == code
        for command in ("demo", "ask", "chat", "convert"):
            assert f" {command} " in result.out


@pytest.mark.parametrize("command", ["demo", "ask", "chat", "convert"])
def test_every_command_has_help(run: Callable[..., Any], command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert f"llava-stf {command}" in result.out


def test_starting_imports_nothing_heavy() -> None:
    code = (
        "import sys, llava_stf.cli as cli; cli.main(['--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask"], "Missing argument 'image'; see llava-stf ask --help."),
        (["nonsense"], "No such command 'nonsense'; see llava-stf --help."),
        (["ask", "missing.png", "What?"], "No image file at missing.png"),
        (["chat", "missing.png"], "No image file at missing.png"),
        (["ask", "ftp://host/a.png", "What?"], "only http and https"),
        (["ask", "{image}", "What?", "--model", "missing/folder/model"], "missing/folder/model"),
        (["ask", "{image}", "What?", "--model", "owner/no-such-model"], "owner/no-such-model"),
        (["ask", "{image}", "", "--model", "{model}"], "question is empty"),
        (["ask", "{image}", "<image> <image>?", "--model", "{model}"], "2 <image> markers for 1 images"),
        (["ask", "{image}", "x" * 600, "--model", "{model}"], "positions"),
        (["ask", "{image}", "What?", "--model", "{model}", "--vision-tokens", "16"], "vision tokens"),
        (["ask", "{image}", "What?", "--model", "{model}", "--vision-tokens", "few"], "a count or 'all'"),
        (["ask", "{image}", "What?", "--model", "{model}", "--device", "abacus"], "abacus"),
        (["ask", "{image}", "What?", "--dtype", "int3"], "int3"),
        (["ask", "{image}", "What?", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["convert", "missing", "{tmp}/dst"], "missing"),
        (["convert", "{model}", "{model}"], "{model}"),
        (["convert", "{model}", "{tmp}/dst", "--fusion-layers", "a,b"], "whole numbers"),
        (["demo", "--output", "{tmp}/no/such/folder/demo.png"], "no folder"),
        (["demo", "--image", "missing.png"], "missing.png"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_users_error_is_one_sentence_and_exit_code_2(
    run: Callable[..., Any], stf_folder: Path, images: list[Path], tmp_path: Path, arguments: list[str], said: str
) -> None:
    places = {"model": stf_folder, "image": images[0], "tmp": tmp_path}
    result = run(*(argument.format(**places) for argument in arguments))
    assert result.code == 2
    assert result.out == ""
    assert said.format(**places) in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--debug", "ask", "missing.png", "?"], ["ask", "missing.png", "?", "--debug"]])
def test_debug_shows_the_traceback(run: Callable[..., Any], arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert "Traceback" in result.err
    assert "FileNotFoundError" in result.err
    assert result.err.splitlines()[-1].startswith("No image file")


def test_our_own_error_is_one_line_and_exit_code_1(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("llava_stf.images.load_image", fails)
    result = run("ask", "a.png", "What?")
    expected = "internal error: RuntimeError: two lines (llava-stf --debug shows where)\n"
    assert (result.code, result.err) == (1, expected)
    assert "Traceback" in run("--debug", "ask", "a.png", "What?").err


@pytest.mark.parametrize(("flags", "shown"), [([], False), (["--debug"], True)])
def test_warnings_of_libraries_need_debug(run: Callable[..., Any], flags: list[str], shown: bool) -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
    run(*flags, "ask", "missing.png", "?")
    assert logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING) is shown


def test_a_shell_sees_the_exit_code(tmp_path: Path) -> None:
    result = subprocess.run([*COMMAND, "ask", "missing.png", "?"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "No image file at missing.png; check the path.\n"


def test_a_damaged_tiff_leaves_one_sentence_also_from_libtiff(images: list[Path], tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "cut.tif"
    Image.open(images[0]).save(file, compression="tiff_lzw")
    data = bytearray(file.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    file.write_bytes(data)
    result = subprocess.run([*COMMAND, "ask", file, "?"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_interrupting_ends_with_130(stf_folder: Path, images: list[Path]) -> None:
    with subprocess.Popen(
        [*COMMAND, "chat", images[0], "--model", stf_folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=heed_interrupts,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("What?\n")
        process.stdin.flush()
        process.stdout.readline()  # it has answered and waits for the next line
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == "Stopped by SIGINT: nothing is kept, and the same command starts afresh.\n"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_reader_that_leaves_is_no_traceback(argument: str) -> None:
    """As in `llava-stf ... | head -1`."""
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([*COMMAND, argument], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")
