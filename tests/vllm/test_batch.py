"""`llava-stf batch --engine vllm` gives the results of transformers, and a row that fails fails alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from llava_stf import apply_stf
from llava_stf.batch.job import BatchJob
from llava_stf.batch.run import run_batch
from llava_stf.errors import FusionError, LlavaStfError
from llava_stf.loading.testing_videos import tiny_llava_onevision

from .conftest import release_engines

COMMAND = [sys.executable, "-c", "import sys; from llava_stf.cli import main; sys.exit(main())", "batch"]
ENGINE = ["--engine", "vllm", "--vllm-option", "enforce_eager=true", "--vllm-option", "max_num_seqs=8"]


def results(output):
    return [json.loads(line) for path in sorted(output.glob("part-*")) for line in path.read_text().splitlines()]


def test_rows_are_answered_as_by_transformers(pictures, tmp_path):
    for number in range(10):
        pictures[number].save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    asked = "How many shapes are there?"
    rows = [{"image": f"{number}.png", "question": asked} for number in range(10)]
    rows += [{"images": ["0.png", "1.png"], "question": asked}, {"image": "0.png", "question": "x" * 3000}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    options = ["--dtype", "float32", "--shard-size", "7", *ENGINE]
    done = subprocess.run(
        [*COMMAND, str(tmp_path / "rows.jsonl"), str(theirs), *options],
        capture_output=True, text=True, env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("\n") == 1, done.stdout
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["errors"], summary["rows_now"]) == (12, 2, 12)
    run_batch(BatchJob(tmp_path / "rows.jsonl", ours, shard_size=7, dtype="float32"))
    assert results(theirs) == results(ours)


def test_images_in_tiles(tmp_path):
    """Two sizes alone and together, at the smaller of two budgets; and what is too long is told by its own numbers."""
    model, processor = tiny_llava_onevision(width=64)
    with torch.no_grad():
        model.lm_head.weight[3:259] = 0  # answers of characters alone: bytes that are no text are decoded in two ways
    apply_stf(model, processor, window=[2, 5])
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for number, size in enumerate([(300, 90), (60, 200)]):
        Image.effect_noise(size, 90).save(tmp_path / f"{number}.png")
    rows = [{"image": "0.png"}, {"image": "1.png"}, {"images": ["0.png", "1.png"]}, {"images": ["0.png"] * 2}]
    rows += [{"image": "1.png", "question": "x" * 1100}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"question": "Go", **row}) + "\n" for row in rows))
    job = BatchJob(
        tmp_path / "rows.jsonl", tmp_path / "ours", model=str(tmp_path / "model"), dtype="float32", max_new_tokens=8,
        vision_tokens=1,
    )  # fmt: skip
    run_batch(job)
    options = {"enforce_eager": True, "max_num_seqs": 4, "block_size": 32}
    run_batch(replace(job, output=tmp_path / "theirs", engine="vllm", vllm_options=options))
    release_engines()
    assert results(tmp_path / "theirs") == results(tmp_path / "ours")
    assert [row["error"] is None for row in results(tmp_path / "ours")] == [True] * 4 + [False]


def test_what_vllm_does_not_do_is_refused_before_it_starts(pictures, tmp_path):
    pictures[0].save(tmp_path / "0.png")
    with pytest.raises(FusionError, match="vLLM runs models as they are saved"):
        run_batch(BatchJob(tmp_path, tmp_path / "a", question="?", model="tiny-full", engine="vllm", vision_tokens=16))
    with pytest.raises(LlavaStfError, match="quantization and device are for transformers"):
        run_batch(BatchJob(tmp_path, tmp_path / "b", question="?", engine="vllm", device="cpu"))
