"""What cannot be exported, or cannot be done with an export, is said in a sentence, and nothing half is left behind."""

import json
import shutil
import sys

import pytest
from transformers import LlavaForConditionalGeneration

from llava_stf import LlavaStf, apply_stf, load_model
from llava_stf.cli import main
from llava_stf.errors import (
    CheckpointError,
    DeviceMemoryError,
    ExportError,
    FusionError,
    MissingDependencyError,
)
from llava_stf.export import write
from llava_stf.export.write import export_model
from llava_stf.io.exports import MANIFEST
from llava_stf.loading import load_processor, read_config, read_config_to_ask
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.reduction import apply_reduction


@pytest.fixture
def folder(openvino_folder, tmp_path):
    """A copy of the export, to be harmed."""
    return shutil.copytree(openvino_folder, tmp_path / "copy")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "onx"}, "Unknown format 'onx': expected one of openvino, onnx; did you mean 'onnx'"),
        ({"weights": "int9"}, "Unknown weights 'int9'.*did you mean 'int8'|int4"),
        ({"kv_cache": "u4"}, "Unknown kv_cache 'u4'"),
        ({"format": "onnx", "weights": "int4"}, "weights 'int4' are for OpenVINO"),
        ({"format": "onnx", "kv_cache": "u8"}, "kv_cache 'u8' is OpenVINO's"),
    ],
)
def test_what_is_not_there(options, sentence, llava, tmp_path):
    with pytest.raises(ExportError, match=sentence):
        export_model(llava, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_methods_that_are_no_graph_of_pixels_leave_nothing(plain_folder, tmp_path):
    for name, sentence in (("random", "no fixed graph"), ("fastv", "drops tokens inside the language model")):
        llava = load_model(plain_folder, vision_tokens="all", device="cpu", dtype="float32")
        apply_reduction(llava.model, llava.processor, name, vision_tokens=4)
        with pytest.raises(ExportError, match=sentence):
            export_model(llava, tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_models_that_have_no_such_form(llava, stf_folder, tmp_path):
    with pytest.raises(ExportError, match=r"Expected a model in float32 on the CPU, found torch\.bfloat16"):
        export_model(load_model(stf_folder, device="cpu", dtype="bfloat16"), tmp_path / "out")
    with pytest.raises(ExportError, match="without a tokenizer"):
        export_model(LlavaStf(llava.model, None), tmp_path / "out")
    with pytest.raises(ExportError, match=r"found 'llava_next'.*neither tiles nor videos"):
        export_model(LlavaStf(*tiny_llava_next()), tmp_path / "out")


def test_a_model_too_large_for_the_machine(stf_folder, monkeypatch):
    monkeypatch.setattr(write, "available_memory", lambda: 1000)
    with pytest.raises(DeviceMemoryError, match=r"takes about .* GiB.* are free"):
        write.check_memory(read_config(stf_folder))


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_an_extra_that_is_not_installed(format, llava, tmp_path, request, monkeypatch):
    export = request.getfixturevalue(f"{format}_folder")
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'llava-stf\[{format}\]'"):
        export_model(llava, tmp_path / "out", format=format)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'llava-stf\[{format}\]'"):
        load_model(export)


def test_an_export_that_is_not_whole(folder):
    file = folder / "openvino_language_model.bin"
    file.write_bytes(file.read_bytes()[:-1])
    for reader in (load_model, load_processor, read_config_to_ask):
        with pytest.raises(ExportError, match=r"not whole: openvino_language_model.bin has \d+ bytes, expected"):
            reader(folder)
    file.unlink()
    with pytest.raises(ExportError, match=r"openvino_language_model\.bin is missing"):
        load_model(folder)


def test_an_export_of_another_version_or_of_none(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ExportError, match=r"an export of version 99, written by llava_stf .* reads version 1"):
        load_model(folder)
    (folder / MANIFEST).write_text(json.dumps({"version": 1, "more": 2}))
    with pytest.raises(ExportError, match="is no manifest of an export"):
        load_model(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match=MANIFEST):
        load_model(folder)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dtype": "bfloat16"}, ExportError),
        ({"device": "cuda"}, ExportError),
        ({"quantization": "4bit"}, ExportError),
        ({"compile": True}, ExportError),
        ({"init": "random"}, ExportError),
        ({"vision_tokens": 1}, FusionError),
        ({"vision_tokens": "all"}, FusionError),
        ({"vision_tokens": [4, 1]}, FusionError),
    ],
    ids=str,
)
def test_options_that_are_for_weights(options, error, openvino_folder):
    with pytest.raises(error, match="export"):
        load_model(openvino_folder, **options)
    # Its own, said once more.
    load_model(openvino_folder, vision_tokens=4, dtype="float32", device="cpu")


def test_an_export_cannot_be_trained_patched_converted_or_exported(openvino_folder, tmp_path):
    llava = load_model(openvino_folder)
    with pytest.raises(ExportError, match="cannot be trained"):
        llava.model.train()
    with pytest.raises(ExportError, match="cannot be saved"):
        llava.model.save_pretrained(tmp_path / "saved")
    with pytest.raises(FusionError, match="Expected a plain"):
        apply_stf(*llava)
    with pytest.raises(ExportError, match="an export already"):
        export_model(llava, tmp_path / "again")
    with pytest.raises(ExportError, match="no weights to train"):
        read_config(openvino_folder)
    assert isinstance(llava.model, LlavaForConditionalGeneration)
    assert not list(tmp_path.iterdir())


def test_the_commands_refuse(plain_folder, openvino_folder, tmp_path, capsys):
    shutil.copy(__file__, tmp_path / "taken")
    assert main(["export", str(plain_folder), str(tmp_path / "taken")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(plain_folder), str(tmp_path / "out"), "--method", "pool"]) == 2
    assert "--vision-tokens N" in capsys.readouterr().err
    assert main(["convert", str(openvino_folder), str(tmp_path / "out")]) == 2
    assert "is an export" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
