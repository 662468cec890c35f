"""Training of a ViP-LLaVA, whose projector takes five states of the tower."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from llava_stf import load_model
from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import open_records
from llava_stf.io.runs import newest_checkpoint
from llava_stf.loading.merge import merge_lora
from llava_stf.loading.testing import tiny_vipllava
from llava_stf.training.data import collate
from llava_stf.training.optim import part_of


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


@torch.no_grad()
def slow_loss(base, data_folder):
    teacher, student = (load_model(base, vision_tokens=tokens, dtype="float32") for tokens in ("all", None))
    rows, divergence, count = open_records(str(data_folder / "instruct.json")), 0.0, 0
    for number in range(len(rows)):
        rates = []
        for llava in (teacher, student):
            prepare = Preparation(llava.processor, name="", images=data_folder, template="v1", max_length=2048)
            batch = collate([prepare(rows[number], number)], pad_token_id=0)
            labels = batch["labels"][0]
            del batch["sample_ids"], batch["labels"]
            logits = llava.model(**batch).logits[0, :-1]
            rates.append(functional.log_softmax(logits[labels[1:] != -100], dim=-1))
        divergence += (rates[0].exp() * (rates[0] - rates[1])).sum()
        count += len(rates[0])
    return float(divergence / count)


def test_distillation_is_towards_the_untouched_model(train, base, data_folder):
    count = len(open_records(str(data_folder / "instruct.json")))
    output = train(stage="distill", per_device_batch_size=count, max_steps=1, save_steps=1, group_by_length=False)
    state = json.loads((newest_checkpoint(output) / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss"] == pytest.approx(slow_loss(base, data_folder), rel=1e-3)
