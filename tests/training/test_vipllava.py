"""Training of a ViP-LLaVA, whose projector takes five states of the tower."""

import json

import pytest
import torch
from safetensors.torch import load_file

from llava_stf import load_model
from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import open_records
from llava_stf.io.runs import newest_checkpoint
from llava_stf.loading.merge import merge_lora
from llava_stf.loading.testing import tiny_vipllava
from llava_stf.training.optim import part_of

from .conftest import divergence_from_all_tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vip")
    for part in tiny_vipllava():
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def train(run, base):
    return lambda name="out", **options: run(name=name, base=str(base), **options)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("reduction", ["stf", "pool"])
def test_instruction_tuning_trains_projector_and_llm(train, base, data_folder, reduction):
    output = train(reduction=reduction, max_steps=1, warmup_ratio=0, scheduler="constant_with_warmup")
    llava = load_model(output)
    assert (llava.vision_tokens, llava.model.config.fusion) == (4, reduction)
    assert isinstance(llava.ask(data_folder / "red.png", "What colour is it?", max_new_tokens=2), str)
    before, after = weights(base), weights(output)
    shared = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    trained = {"language_model", "projector"} if reduction == "pool" else {"language_model"}  # STF has its own names
    assert {part_of(name) for name in shared} == trained


def test_alignment_trains_the_projector_alone(train, base, tmp_path):
    load_model(base).model.save_pretrained(tmp_path / "start")
    before, after = weights(tmp_path / "start"), weights(train(data="align.json", stage="align"))
    assert {part_of(name) for name in before if not torch.equal(before[name], after[name])} == {"projector"}


def test_adapters_load_and_merge(train, data_folder, tmp_path):
    output = train(lora_rank=2, max_steps=2)
    merge_lora(output, tmp_path / "merged")
    answers = [load_model(folder).ask(data_folder / "red.png", "What?") for folder in (output, tmp_path / "merged")]
    assert answers[0] == answers[1]


def test_distillation_is_towards_the_untouched_model(train, base, data_folder):
    rows = open_records(str(data_folder / "instruct.json"))

    def prepare(llava):
        return Preparation(llava.processor, name="", images=data_folder, template="v1", max_length=2048)

    output = train(stage="distill", per_device_batch_size=len(rows), max_steps=1, save_steps=1, group_by_length=False)
    state = json.loads((newest_checkpoint(output) / "trainer_state.json").read_text())
    expected = divergence_from_all_tokens(base, rows, prepare)
    assert state["log_history"][0]["loss"] == pytest.approx(expected, rel=1e-3)
