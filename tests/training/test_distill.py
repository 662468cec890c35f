"""Distillation into fewer vision tokens, and runs for several budgets: the loss, what is trained, and resumption."""

import json
import shutil

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from torch.nn import functional

from llava_stf import load_model
from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import open_records
from llava_stf.errors import FusionError, LlavaStfError
from llava_stf.io.runs import newest_checkpoint
from llava_stf.training.budgets import budget_of_step, with_counts
from llava_stf.training.config import from_values
from llava_stf.training.data import collate
from llava_stf.training.finetune import load_start
from llava_stf.training.optim import part_of

ALL, QUARTER = 16, 4  # tokens of the 4 x 4 patches
IMAGE, PAD = 9, 0


def losses(output):
    state = json.loads((newest_checkpoint(output) / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed_parts(before, after):
    assert before.keys() == after.keys()
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


@torch.no_grad()
def slow_loss(base, data_folder, feature_weight):
    """The loss of the warm-started student over all samples, one by one, from the two models as users load them."""
    teacher, student = load_model(base, vision_tokens="all"), load_model(base, vision_tokens=QUARTER)
    divergence, features, answers, images = 0.0, 0.0, 0, 0
    rows = open_records(str(data_folder / "instruct.json"))
    for number in range(len(rows)):
        rates = []
        for llava in (teacher, student):
            prepare = Preparation(llava.processor, name="", images=data_folder, template="v1", max_length=2048)
            batch = collate([prepare(rows[number], number)], pad_token_id=PAD)
            labels, pixels = batch["labels"][0], batch.get("pixel_values")
            logits = llava.model(input_ids=batch["input_ids"], pixel_values=pixels).logits[0, :-1]
            rates.append(functional.log_softmax(logits[labels[1:] != -100], dim=-1))
        divergence += (rates[0].exp() * (rates[0] - rates[1])).sum()
        answers += len(rates[0])
        if pixels is not None:
            full = teacher.model.get_image_features(pixels, return_dict=True).pooler_output
            fused = student.model.get_image_features(pixels, return_dict=True).pooler_output
            for tokens, wanted in zip(fused, full, strict=True):
                pooled = wanted.view(2, 2, 2, 2, -1).mean(dim=(1, 3)).flatten(0, 1)
                features += (tokens - pooled).square().mean()
            images += len(full)
    return divergence / answers + feature_weight * features / images


@pytest.mark.parametrize("feature_weight", [0.0, 10.0])
def test_the_loss_is_the_divergence_from_the_base_at_all_its_tokens(run, llava_base, data_folder, feature_weight):
    options = {"per_device_batch_size": 12, "max_steps": 1, "feature_weight": feature_weight}
    (found,) = losses(run(stage="distill", **options))
    expected = float(slow_loss(llava_base, data_folder, feature_weight))
    assert expected > 1e-4
    assert found == pytest.approx(expected, rel=1e-3)


def test_all_tokens_leave_nothing_to_learn(run):
    assert losses(run(stage="distill", vision_tokens=(ALL,), max_steps=2, learning_rate=0.0)) == pytest.approx(
        [0, 0], abs=1e-6
    )


def test_the_projector_alone_is_trained_and_comes_nearer(run, tmp_path, llava_base):
    start, _ = load_model(llava_base)
    start.save_pretrained(tmp_path / "start")
    output = run(stage="distill", max_steps=24, learning_rate=3e-3, per_device_batch_size=12)
    assert changed_parts(weights(tmp_path / "start"), weights(output)) == {"projector"}
    curve = losses(output)
    assert curve[-1] < 0.7 * curve[0]
    assert load_model(output).vision_tokens == QUARTER


def turns(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def test_text_alone_teaches_the_projector_nothing_and_leaves_it_as_it_is(run, tmp_path, data_folder):
    """Steps hold samples of one modality here, so some have no image at all."""
    text = [{"id": f"t{n}", "conversations": turns("Hello?", "Hello there.")} for n in range(4)]
    shown = [
        {"id": f"i{n}", "image": "red.png", "conversations": turns("<image>\nWhat?", "A square.")} for n in range(2)
    ]
    for name, rows in (("mixed", text + shown), ("images", shown)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    options = {"stage": "distill", "per_device_batch_size": 2, "images": str(data_folder), "save_steps": 1}
    options |= {"save_total_limit": 9, "scheduler": "constant_with_warmup", "warmup_ratio": 0}
    output = run("mixed", data=tmp_path / "mixed.json", max_steps=3, **options)
    found = losses(output)
    assert sum(loss > 1e-6 for loss in found) == 1  # the one step with images
    assert sorted(found)[:2] == pytest.approx([0, 0], abs=1e-6)
    alone = run("images", data=tmp_path / "images.json", max_steps=1, **options)
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(output)[name], value, rtol=0, atol=1e-6, msg=name)


def test_the_teacher_has_no_adapters(run):
    """At all tokens teacher and student differ by the adapters alone, which start as nothing."""
    options = {"lora_rank": 4, "lora_dropout": 0.0, "learning_rate": 0.3, "projector_learning_rate": 0.0}
    output = run(stage="distill", vision_tokens=(ALL,), max_steps=6, warmup_ratio=0.0, **options)
    curve = losses(output)
    assert curve[0] == pytest.approx(0, abs=1e-6)
    assert max(curve) > 1e-3
    assert load_model(output).vision_tokens == ALL


def test_a_resumed_run_has_its_teacher_again(run, tmp_path):
    options = {"stage": "distill", "max_steps": 4, "save_steps": 2, "per_device_batch_size": 4, "vision_tokens": (4, 1)}
    whole = run("whole", **options)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run("resumed", resume=True, **options)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.19"),
    reason="transformers 5.17 maps the optimizer of several CPU processes to 'cpu:0', which torch does not know",
)
def test_two_processes_end_where_one_does(run, run_in, tmp_path):
    options = {
        "stage": "distill",
        "max_steps": 3,
        "feature_weight": 1.0,
        "vision_tokens": (4, 1),
        "group_by_length": False,
    }
    one = run("one", per_device_batch_size=4, **options)
    two = run_in(
        2, "two", config="ddp.yaml", program="llava_stf.training.finetune:main", **{**options, "vision_tokens": "4,1"}
    )
    assert two.wait() == [0, 0], two.log()
    # The match of image tokens is weighted by a process's answers, so it is the same up to their share.
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=0.05)


def test_what_is_frozen_takes_the_dtype_it_is_saved_in(llava_base, data_folder, tmp_path, run):
    options = {"stage": "align", "data": "align.json", "bf16": True, "save_dtype": "bfloat16", "save_steps": 2}
    values = {"base": str(llava_base), "output": "unused", "data": "unused", "bf16": True, "save_dtype": "bfloat16"}
    model, _ = load_start(from_values({**values, "stage": "align"}), None)
    dtypes = {part_of(name): value.dtype for name, value in model.named_parameters()}
    assert dtypes == {"vision_tower": torch.bfloat16, "language_model": torch.bfloat16, "projector": torch.float32}
    whole = run("whole", **options, max_steps=4)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run("resumed", **options, max_steps=4, resume=True)
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())
    base = load_file(llava_base / "model.safetensors")
    frozen = [name for name in base if part_of(name) != "projector"]
    assert all(torch.equal(weights(whole)[name], base[name].bfloat16()) for name in frozen)


def test_distillation_needs_a_base_that_can_teach(run, stf_folder):
    with pytest.raises(FusionError, match="starts from a plain LLaVA"):
        run(stage="distill", base=str(stf_folder))


def test_budgets_that_no_window_gives_are_refused(run):
    with pytest.raises(FusionError, match="No window of the 4x4 patches gives 7"):
        run(vision_tokens=(4, 7))


def test_a_run_for_several_budgets_gives_a_model_for_each(run):
    output = run(vision_tokens=(1, 4), max_steps=3)
    assert load_model(output).vision_tokens == 1
    assert load_model(output, vision_tokens=4).vision_tokens == 4
    went_on = run("went_on", base=str(output), max_steps=2)
    assert load_model(went_on, vision_tokens=4).model.config.fusion_windows == [4, 2]
    with pytest.raises(LlavaStfError, match="cannot give 16"):
        run("other", base=str(output), vision_tokens=16)


def test_drawn_budgets_depend_on_seed_and_step_alone():
    counts = [144, 64, 36]
    drawn = [budget_of_step(counts, "random", step, 300, seed=5) for step in range(300)]
    assert drawn == [budget_of_step(counts, "random", step, 999, seed=5) for step in range(300)]
    assert all(drawn.count(count) > 70 for count in counts)
    assert drawn != [budget_of_step(counts, "random", step, 300, seed=6) for step in range(300)]


def test_descending_budgets_have_equal_shares_of_the_run():
    assert [budget_of_step([36, 144, 64], "descending", step, 7, seed=0) for step in range(7)] == [
        *(144, 144, 144),
        *(64, 64),
        *(36, 36),
    ]


def test_a_batch_is_brought_to_another_budget_and_back():
    """Two images next to each other, one alone, and a row of text."""
    rows = [[1, *[IMAGE] * 8, 5, 6], [1, *[IMAGE] * 4, 7], [1, 5, 6, 7]]
    labels = [[-100] * 9 + [5, 6], [-100] * 5 + [7], [-100, 5, 6, 7]]
    samples = [
        {
            "sample_id": "",
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(wanted),
            "pixel_values": None,
            "choices": {},
        }
        for ids, wanted in zip(rows, labels, strict=True)
    ]
    batch = collate(samples, pad_token_id=PAD)
    small = with_counts(batch, [4] * 3, [1] * 3, IMAGE)
    assert small["input_ids"].tolist() == [[1, 9, 9, 5, 6], [1, 9, 7, 0, 0], [1, 5, 6, 7, 0]]
    assert small["attention_mask"].sum(-1).tolist() == [5, 3, 4]
    for row, wanted in zip(small["labels"], labels, strict=True):
        assert row[row != -100].tolist() == [label for label in wanted if label != -100]
    again = with_counts(small, [1] * 3, [4] * 3, IMAGE)
    assert all(torch.equal(again[name], batch[name]) for name in ("input_ids", "labels", "attention_mask"))
