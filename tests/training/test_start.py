"""What a run cannot start from is refused in one sentence before any weights are read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from llava_stf import load_model
from llava_stf.errors import LlavaStfError
from llava_stf.loading import precision
from llava_stf.training import start
from llava_stf.training.config import from_values
from llava_stf.training.finetune import finetune


def without_weights(folder, destination):
    """A copy whose weights cannot be read, so that reading them is an error of another kind."""
    shutil.copytree(folder, destination)
    (destination / "model.safetensors").write_bytes(b"")
    return destination


def refused(base, data_folder, tmp_path, **options):
    values = {"base": str(base), "data": str(data_folder / "instruct.json"), "output": str(tmp_path / "out")}
    with pytest.raises(LlavaStfError) as error:
        finetune(from_values({**values, "num_workers": 0, **options}))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("options", [{}, {"reduction": "pool"}], ids=["stf", "pool"])
def test_a_window_that_does_not_divide(llava_base, data_folder, tmp_path, options):
    base = without_weights(llava_base, tmp_path / "base")
    assert "No window of the 4x4 patches gives 5" in refused(base, data_folder, tmp_path, vision_tokens=5, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision_tokens": 1}, "was trained for 4 vision tokens and cannot give 1"),
        ({"reduction": "pool"}, "has a fused projector of its own"),
        ({"init": "random"}, "has a fused projector of its own"),
        ({"vision_tower": "some/tower"}, "takes no other"),
    ],
)
def test_a_fused_base_keeps_its_projector(stf_folder, data_folder, tmp_path, options, message):
    base = without_weights(stf_folder, tmp_path / "base")
    assert message in refused(base, data_folder, tmp_path, **options)


def test_all_tokens_have_no_projector_to_start(llava_base, data_folder, tmp_path):
    base = without_weights(llava_base, tmp_path / "base")
    for init in ("random", "nowhere.safetensors"):
        message = refused(base, data_folder, tmp_path, vision_tokens="all", init=init)
        assert message == f"vision_tokens all keeps the base's own projector: leave out init {init}"


def test_a_base_of_all_tokens_has_none_to_distil_to_unless_they_are_named(llava_base, data_folder, tmp_path):
    base = without_weights(llava_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "trained_at_all_vision_tokens": True}))
    message = f"stage distill is for fewer vision tokens, and {base} has all its own: say how many"
    assert refused(base, data_folder, tmp_path, stage="distill") == message
    named = refused("tiny-full", data_folder, tmp_path, stage="distill")
    assert named == message.replace(str(base), "tiny-full")


def test_a_projector_file_of_other_widths(llava_base, stf_folder, data_folder, tmp_path):
    projector = load_model(stf_folder).model.model.multi_modal_projector.state_dict()
    name = "spatial_fusion.linear_2.weight"
    projector[name] = projector[name][:-1].contiguous()
    save_file({f"multi_modal_projector.{key}": value for key, value in projector.items()}, tmp_path / "p.safetensors")
    base = without_weights(llava_base, tmp_path / "base")
    message = refused(base, data_folder, tmp_path, init=str(tmp_path / "p.safetensors"))
    assert f"{name} has shape [31, 128], this model needs [32, 128]" in message


def test_a_base_that_is_not_there(data_folder, tmp_path):
    assert "No model 'nowhere'" in refused("nowhere", data_folder, tmp_path)


@pytest.mark.parametrize(
    ("options", "package", "line"),
    [
        ({"report_to": "wandb"}, "wandb", "pip install wandb"),
        ({"report_to": "tensorboard"}, "tensorboard", r"pip install 'llava-stf[train]'"),
        ({"attn_implementation": "flash_attention_2"}, "flash_attn", "pip install flash-attn"),
        ({"lora_rank": 2}, "peft", "pip install 'llava-stf[train]'"),
        ({"lora_rank": 2, "quantization": "4bit"}, "bitsandbytes", "pip install 'llava-stf[quantization]'"),
    ],
)
def test_a_package_that_an_option_needs(llava_base, data_folder, tmp_path, monkeypatch, options, package, line):
    monkeypatch.setattr(start, "find_spec", lambda name: None if name == package else object())
    message = refused(without_weights(llava_base, tmp_path / "base"), data_folder, tmp_path, **options)
    assert f"needs the package {package}: {line}" in message


@pytest.mark.parametrize(
    ("bf16", "slow", "expected"),
    [("auto", True, False), ("auto", False, True), (True, True, True), (False, False, False)],
)
def test_a_cpu_computes_in_bfloat16_where_it_is_quick_at_it_or_is_told_to(monkeypatch, bf16, slow, expected):
    monkeypatch.setattr(precision, "slow_on_cpu", lambda dtype: slow)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    config = from_values({"base": "b", "data": "d", "output": "o", "bf16": bf16})
    assert start.computes_in_bfloat16(config) is expected


@pytest.mark.parametrize("slow", [True, False])
def test_float32_in_place_of_bfloat16_is_said_once(run, monkeypatch, caplog, slow):
    monkeypatch.setattr(precision, "slow_on_cpu", lambda dtype: slow)
    with caplog.at_level("INFO", "llava_stf"):
        run(bf16="auto", max_steps=1)
    assert caplog.text.count("computing in float32") == slow
