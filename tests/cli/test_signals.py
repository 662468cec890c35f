"""A signal ends every command alike: 130 or 143, a sentence on what is kept, and nothing half-made beside it."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

SECONDS = 300


@pytest.fixture
def stop(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str]]:
    """Sends the signal to a command when its moment has come; exit code, and what it has printed."""

    def stop_one(arguments: list[object], moment: Callable[[], bool], number: signal.Signals) -> tuple[int, str]:
        printed = tmp_path_factory.mktemp("stopped") / "printed"
        process = start(arguments, output=printed)
        deadline = time.monotonic() + SECONDS
        while not moment():
            assert process.exitcode is None, printed.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, number)
        process.join(SECONDS)
        return process.exitcode, printed.read_text()

    return stop_one


@pytest.fixture(scope="module")
def large(plain_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose writing takes a while: 400 MB of embeddings."""
    folder = tmp_path_factory.mktemp("large") / "model"
    shutil.copytree(plain_folder, folder)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    rows = 2**21
    for name, value in weights.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weights[name] = torch.zeros(rows, value.shape[1], dtype=value.dtype)
    config["text_config"]["vocab_size"] = rows
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_convert_leaves_nothing_behind(stop: Callable[..., Any], large: Path, tmp_path: Path) -> None:
    arguments = ["convert", large, tmp_path / "dst"]
    code, printed = stop(arguments, lambda: bool(list(tmp_path.glob(".dst.partial-*/*"))), signal.SIGTERM)
    assert code == 143
    assert printed == "Stopped by SIGTERM: nothing is kept, and the same command starts afresh.\n"
    assert list(tmp_path.iterdir()) == []


def test_batch_says_that_its_shards_are_kept(stop: Callable[..., Any], tmp_path: Path, images: list[Path]) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("".join(f'{{"image": "{images[0]}"}}\n' for _ in range(4000)))
    arguments = ["batch", rows, output, "--question", "What?", "--shard-size", 4, "--max-new-tokens", 4]
    code, printed = stop(arguments, lambda: (output / "part-00000.jsonl").exists(), signal.SIGINT)
    assert code == 130
    said = f"the shards in {output} are kept, and the same command goes on from there."
    assert printed.splitlines()[-1] == f"Stopped by SIGINT: {said}"
    assert not list(output.glob(".*"))


def test_a_second_command_in_the_same_process_finds_the_handlers_as_they_were(run: Callable[..., object]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run("ask", "missing.png", "What?")
    assert signal.getsignal(signal.SIGTERM) is before
