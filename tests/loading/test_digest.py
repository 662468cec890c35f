"""A model's digest misses no byte that loading reads, also of what the model names, and no place where it lies."""

import json
import os
import shutil
from pathlib import Path

import pytest

from llava_stf.batch.job import BatchJob
from llava_stf.errors import ModelNotFoundError
from llava_stf.loading.digest import model_digest


def flip(file: Path, place: int) -> None:
    """Changes one byte of a file and neither its size nor its time."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def model(plain_folder: Path, tmp_path: Path) -> Path:
    """Its weights take 9 MiB, of which blocks alone would be read."""
    folder = tmp_path / "model"
    shutil.copytree(plain_folder, folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(9 * 2**20))
    return folder


def test_it_is_of_the_content_wherever_that_lies(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("is not loaded")
    assert model_digest(tmp_path / "copy") == model_digest(str(model))
    assert len({model_digest("tiny"), model_digest("tiny-full"), model_digest(model)}) == 3


@pytest.mark.parametrize("place", [1000, 5000, 2 * 2**20 + 5001, -1])
def test_one_byte_of_the_weights_is_not_missed(model: Path, place: int) -> None:
    before = model_digest(model)
    flip(model / "model.safetensors", place)
    assert model_digest(model) != before


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "processor_config.json", "generation_config.json", "chat_template.jinja"],
)
def test_tokenizer_processor_template_and_generation_config_count(model: Path, name: str) -> None:
    (model / name).touch()
    before = model_digest(model)
    with (model / name).open("a") as file:
        file.write(" ")
    after = model_digest(model)
    (model / name).unlink()
    assert len({before, after, model_digest(model)}) == 3


def test_an_adapter_is_told_by_its_base_too(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"low rank")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    before = model_digest(adapter)
    flip(model / "model.safetensors", -1)
    assert model_digest(adapter) != before


def test_a_tower_beside_the_checkpoint_counts(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "pytorch_model.bin").write_bytes(b"tower")
    (tmp_path / "config.json").write_text(json.dumps({"mm_vision_tower": "clip"}))
    before = model_digest(tmp_path)
    flip(tmp_path / "clip" / "pytorch_model.bin", 0)
    assert model_digest(tmp_path) != before


def test_no_model_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="No model"):
        model_digest(tmp_path / "nowhere")


def test_a_batch_is_told_by_all_that_answers_depend_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "?"}\n')

    def manifest(**options: object) -> dict[str, object]:
        job = BatchJob(tmp_path / "rows.jsonl", tmp_path / "out", model=str(model), engine="vllm", **options)  # type: ignore[arg-type]
        return job.manifest(job.rows())

    before = manifest()
    assert manifest(vllm_options={"tensor_parallel_size": 2}) == before
    assert manifest(vllm_options={"quantization": "fp8"}) != before
    flip(model / "tokenizer.json", -2)
    assert manifest() != before
    flip(model / "tokenizer.json", -2)
    assert manifest() == before
    monkeypatch.setattr("llava_stf.batch.job.version", lambda name: "99.0")
    assert manifest() != before
