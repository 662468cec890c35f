"""Engines of several processes: ranks that share a model answer as one, and none outlives a start that is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_stf import apply_stf
from llava_stf.loading.testing_videos import tiny_llava_onevision

from .conftest import Reference, answers, engine, request, wait_for

QUESTION = "How many shapes are there?"
COMMAND = [sys.executable, "-c", "import sys; from llava_stf.cli import main; sys.exit(main())"]


def test_two_ranks_answer_as_one(tmp_path, monkeypatch):
    """Tower, projector and language model in two halves: tiles of several sizes, images together, and a video."""
    model, processor = tiny_llava_onevision(width=64)
    apply_stf(model, processor)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in [*model.model.multi_modal_projector.parameters(), model.model.image_newline]:
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reference = Reference(tmp_path)
    images = [Image.effect_noise(size, 90) for size in [(80, 60), (300, 20), (40, 190), (700, 400)]]
    groups = [[image] for image in images] + [images[:2]]
    requests = [request(reference.prompt("Go", len(group)), group) for group in groups]
    expected = [reference.ids(reference.prompt("Go", len(group)), group) for group in groups]
    clip = np.random.default_rng(1).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
    prompt = reference.prompt("Go", 0, videos=1)
    requests.append({"prompt": prompt, "multi_modal_data": {"video": clip}})
    expected.append(reference.ids(prompt, [], videos=[clip]))
    assert len({tuple(answer) for _, answer in expected}) == len(expected)
    # By itself vLLM wants a memory node for each rank on a processor.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with engine(tmp_path, tensor_parallel_size=2, block_size=32, max_model_len=1024) as llm:
        assert answers(llm, requests) == expected


def processes_of(session):
    """The ids of all processes of a session that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == session and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("command", ["batch", "serve"])
def test_a_killed_start_leaves_no_engine_behind(tmp_path, pictures, command):
    """Killed as soon as it has started a process, which has still to import what would guard it."""
    pictures[0].save(tmp_path / "0.png")
    options = {
        "batch": [str(tmp_path), str(tmp_path / "out"), "--question", QUESTION, "--engine", "vllm"],
        "serve": ["--port", "0", "--engine", "vllm", "--", "--enforce-eager"],
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, command, *options[command]], stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        )  # fmt: skip
    try:
        wait_for(lambda: len(processes_of(process.pid)) > 2 or process.poll() is not None, 600, "the engine's process")
        assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
        process.kill()
        process.wait()
        wait_for(lambda: not processes_of(process.pid), 120, "the end of what was started")
    finally:
        for left in processes_of(process.pid):
            os.kill(left, signal.SIGKILL)
