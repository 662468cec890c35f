"""Damaged and hostile checkpoints: always a `CheckpointError` that names the file or the weight, and no destination."""

import json
import os
import pickle
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llava_stf import convert_checkpoint
from llava_stf.errors import CheckpointError, LlavaStfError
from llava_stf.io.weights import read_index

FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def source(original_class, tmp_path_factory):
    small = original_class.small(grid=2, window=1, hidden=16, dtype=torch.bfloat16)
    return small.write(tmp_path_factory.mktemp("source") / "src")


@pytest.fixture
def attempt(source, tmp_path):
    """Convert a copy of the checkpoint after `change(copy)`, which must fail with `CheckpointError`; its message."""

    def convert(change, error=CheckpointError) -> str:
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        copy = shutil.copytree(source, tmp_path / "work" / "src")
        change(copy)
        with pytest.raises(error) as caught:
            convert_checkpoint(copy, tmp_path / "work" / "dst", progress=False)
        assert [path.name for path in (tmp_path / "work").iterdir()] == ["src"]
        return str(caught.value)

    return convert


def change_tensors(change):
    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


@FUZZ
@given(data=st.data())
def test_a_missing_weight_is_named(data, source, attempt):
    name = data.draw(st.sampled_from(sorted(load_file(source / "model.safetensors"))))
    message = attempt(change_tensors(lambda tensors: tensors.pop(name)))
    assert name in message or name.split(".")[1] == "mm_projector_crosslayer" or name == "model.mm_projector.0.weight"


@FUZZ
@given(data=st.data())
def test_an_unknown_weight_is_named(data, attempt):
    name = data.draw(st.from_regex(r"(model\.|lm_head\.|model\.mm_projector[a-z]?)[a-z]{3,9}\.weight", fullmatch=True))
    assert name in attempt(change_tensors(lambda tensors: tensors.update({name: torch.zeros(2)})))


@FUZZ
@given(data=st.data())
def test_a_weight_of_another_shape_is_refused(data, source, attempt):
    name = data.draw(st.sampled_from(sorted(load_file(source / "model.safetensors"))))
    shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
    attempt(
        change_tensors(lambda tensors: tensors.update({name: torch.zeros(shape)})), (CheckpointError, LlavaStfError)
    )


@FUZZ
@given(part=st.floats(0, 0.999))
def test_a_truncated_file_is_named(part, attempt):
    def truncate(folder):
        file = folder / "model.safetensors"
        os.truncate(file, int(part * file.stat().st_size))

    assert "model.safetensors" in attempt(truncate)


@FUZZ
@given(data=st.data())
def test_a_truncated_pickle_is_named(data, original_class, source, attempt):
    def truncate(folder):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        size = (folder / "pytorch_model.bin").stat().st_size
        os.truncate(folder / "pytorch_model.bin", data.draw(st.integers(0, size - 1)))

    assert "pytorch_model.bin" in attempt(truncate)


@FUZZ
@given(text=st.one_of(st.text(max_size=30), st.sampled_from(['{"a": ', "[1]", "null", "\ud800", "[" * 5000])))
def test_wrong_json_is_named(text, attempt):
    for name in ("config.json", "generation_config.json", "tower/config.json", "tower/preprocessor_config.json"):
        message = attempt(lambda folder, name=name: (folder / name).write_bytes(text.encode(errors="surrogatepass")))
        assert name.split("/")[-1] in message


@FUZZ
@given(data=st.data())
def test_wrong_values_in_the_config_are_refused(data, source, attempt):
    """Whatever stands in a field that decides the model's shape, the answer is an error of ours."""
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    field = data.draw(st.sampled_from(fields))
    value = data.draw(st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3)))

    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, field: value}))

    if field == "num_attention_heads" and value in (None, 2, 4):
        return
    if field == "num_hidden_layers" and value == 2:
        return
    attempt(change)


def test_a_pickle_that_runs_code_is_refused(attempt, tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    def poison(folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Code()}))

    assert "could run code" in attempt(poison)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "weight_map"),
        ([1], "weight_map"),
        ({"a": "model-2.safetensors"}, "model-2.safetensors"),
        ({"a": "../secret.safetensors"}, "secret"),
    ],
)
def test_an_index_that_does_not_fit_is_named(weight_map, message, attempt):
    def index(folder):
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    assert message in attempt(index)


def test_quantized_weights_are_refused(attempt):
    message = attempt(change_tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)})))
    assert "lm_head.weight is int8" in message


def test_a_name_in_two_shards_is_refused(tmp_path):
    for number in (1, 2):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{number}.safetensors")
    with pytest.raises(CheckpointError, match="a stands in both"):
        read_index([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
