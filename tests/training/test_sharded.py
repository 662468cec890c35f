"""Training in several processes that share out the weights ends where one process does, whatever happens between.

Accelerate shards on GPUs alone: `shard_on_cpus.py` says how it is brought to do so here, over gloo. Everything is in
float32, and what differs is the order in which gradients are added up: losses by 1e-6, gradients by 1e-6 of theirs, and
weights, which AdamW moves by a gradient's sign where it is nearly nothing, by 2e-4 (steps are 1e-2).
"""

import os
import shutil
import signal
import time

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from llava_stf import load_model
from llava_stf.errors import DataError, LlavaStfError
from llava_stf.io.runs import PARTIAL, checkpoint_step, newest_checkpoint
from llava_stf.training.config import from_values
from llava_stf.training.data import Share, collate, training_data, with_filler
from llava_stf.training.sharding import check_sharding

LORA = {"lora_rank": 1, "lora_dropout": 0.0}
STAGES = {
    "align": {"stage": "align", "data": "align.json"},
    "instruct": {},
    "lora": LORA,
    "distill": {"stage": "distill"},
    "distill-lora": {"stage": "distill", **LORA},
}
distributed = pytest.mark.distributed


def weights(folder):
    return load_file(next(folder.glob("*model.safetensors")))


def copy_checkpoint(source, step, output):
    shutil.copytree(source / f"checkpoint-{step}", output / f"checkpoint-{step}")


@pytest.mark.parametrize(
    "stage", [name if name in ("instruct", "distill") else pytest.param(name, marks=distributed) for name in STAGES]
)
def test_two_processes_end_where_one_does_which_goes_on_from_their_checkpoint(
    run, run_in, same_run, tmp_path, data_folder, stage
):
    """In the last of an epoch's three steps one process has text alone, and the other an image, too."""
    one = run("one", max_steps=4, **STAGES[stage])
    two = run_in(2, "two", max_steps=4, save_steps=2, save_total_limit=2, **STAGES[stage])
    assert two.wait() == [0, 0], two.log()
    assert "sharded by FSDP2" in two.log()
    same_run(tmp_path / "two", one)
    copy_checkpoint(tmp_path / "two", 2, tmp_path / "on")
    same_run(run("on", max_steps=4, resume=True, **STAGES[stage]), one)
    answers = [
        load_model(folder).ask(data_folder / "red.png", "What?", max_new_tokens=4) for folder in (tmp_path / "two", one)
    ]
    assert answers[0] == answers[1]


@distributed
@pytest.mark.parametrize("stage", ["instruct", "lora", "distill"])
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (2, 4), (1, 2)])
def test_a_run_goes_on_in_another_number_of_processes(run, run_in, same_run, tmp_path, stage, before, after):
    """The adapters of rank 1 have fewer rows than there are processes."""
    one = run("one", max_steps=4, **STAGES[stage])
    begun = run_in(before, "begun", max_steps=4, save_steps=2, save_total_limit=2, **STAGES[stage])
    assert begun.wait() == [0] * before, begun.log()
    copy_checkpoint(tmp_path / "begun", 2, tmp_path / "on")
    on = run_in(after, "on", "--resume", max_steps=4, **STAGES[stage])
    assert on.wait() == [0] * after, on.log()
    same_run(tmp_path / "on", one)


@distributed
def test_a_run_of_one_process_goes_on_sharded(run, run_in, same_run, tmp_path):
    one = run("one", max_steps=4, save_steps=2, save_total_limit=2)
    copy_checkpoint(one, 2, tmp_path / "on")
    on = run_in(2, "on", "--resume", max_steps=4)
    assert on.wait() == [0, 0], on.log()
    same_run(tmp_path / "on", one)


@distributed
def test_accumulated_and_recomputed_it_is_the_same(run, run_in, same_run, tmp_path):
    one = run("one", max_steps=4)
    options = {"per_device_batch_size": 1, "gradient_accumulation": 2, "gradient_checkpointing": True}
    two = run_in(2, "two", max_steps=4, **options)
    assert two.wait() == [0, 0], two.log()
    same_run(tmp_path / "two", one)


@distributed
def test_a_step_of_text_alone_leaves_the_projector_as_in_one_process(run, run_in, same_run, tmp_path):
    one = run("one", per_device_batch_size=2, max_steps=6)
    two = run_in(2, "two", max_steps=6, per_device_batch_size=1)
    assert two.wait() == [0, 0], two.log()
    same_run(tmp_path / "two", one)


@distributed
def test_adapters_trained_in_two_processes_merge_as_those_of_one(run, run_in, same_run, tmp_path):
    from llava_stf.cli import main

    run("one", **LORA)
    two = run_in(2, "two", **LORA)
    assert two.wait() == [0, 0], two.log()
    for name in ("one", "two"):
        assert not main(["merge", str(tmp_path / name), str(tmp_path / f"merged-{name}")])
    after, wanted = weights(tmp_path / "merged-two"), weights(tmp_path / "merged-one")
    for name, value in wanted.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=2e-4, msg=name)


def until(condition, processes, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(process.is_alive() for process in processes.started), processes.log()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@distributed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_run_leaves_whole_checkpoints_and_goes_on(run, run_in, same_run, tmp_path, number):
    """SIGTERM to one process stops all of them at the same step; kill -9 of one leaves the others to the launcher."""
    one = run("one", max_steps=8)
    output = tmp_path / "two"
    two = run_in(2, "two", max_steps=8, save_steps=2)
    until(lambda: newest_checkpoint(output) is not None, two)
    if number == signal.SIGTERM:
        os.kill(two.started[1].pid, number)
        assert two.wait() == [143, 143], two.log()
    else:
        until(lambda: (output / PARTIAL).exists(), two)  # in the middle of a checkpoint
        for process in two.started:
            os.kill(process.pid, number)
        two.wait()
    assert not (output / "config.json").exists()
    assert all(checkpoint_step(folder) >= 0 for folder in output.glob("checkpoint-*"))
    assert 2 <= checkpoint_step(newest_checkpoint(output)) < 8
    on = run_in(2, "two", "--resume", max_steps=8, save_steps=2)
    assert on.wait() == [0, 0], on.log()
    same_run(output, one)
    assert not (output / PARTIAL).exists()


def test_sharding_without_gpus_is_refused(monkeypatch, run):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(LlavaStfError, match="FSDP2 shares out weights over GPUs, and there is none: start them with"):
        run()


def test_processes_that_would_train_apart_are_refused(monkeypatch, run):
    """As what `accelerate launch` starts that does not know that it is on CPUs."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.state.PartialState._prepare_backend", lambda *_, **__: (None, DistributedType.NO))
    monkeypatch.setattr("accelerate.state.PartialState._shared_state", {})
    with pytest.raises(LlavaStfError, match="2 processes were started, and each would train alone: start them with"):
        run()


@pytest.mark.parametrize(
    ("options", "environment", "sentence"),
    [
        ({"lora_rank": 2, "quantization": "4bit"}, {}, "4-bit weights cannot be shared out by FSDP2"),
        ({"compile": True}, {}, "compile is for whole weights"),
        ({}, {"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ({}, {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "set fsdp_cpu_ram_efficient_loading: false"),
        (
            {"compile": True},
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "DeepSpeed ZeRO-3 shards them",
        ),
        (
            {},
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "/none.json"},
            "none.json is no DeepSpeed configuration",
        ),
    ],
)
def test_options_that_do_not_go_with_sharding_are_refused(monkeypatch, options, environment, sentence):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LlavaStfError, match=sentence):
        check_sharding(from_values({"base": "b", "data": "d", "output": "o", **options}))


def test_a_checkpoint_whose_optimizer_is_broken_or_of_another_model_is_refused(run, tmp_path):
    run("out", max_steps=1)
    files = tmp_path / "out" / "checkpoint-1" / "optimizer"
    whole = {path: path.read_bytes() for path in files.iterdir()}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(LlavaStfError, match="checkpoint-1 has no optimizer state that fits this model"):
            run("out", max_steps=2, resume=True)
        path.write_bytes(content)
    run("out", max_steps=2, resume=True)


def test_more_processes_than_samples_are_refused():
    config = from_values({"base": "b", "data": "d", "output": "o"})
    with pytest.raises(DataError, match="3 samples, fewer than the 4 processes"):
        training_data([{}] * 3, None, config, pad_token_id=0, share=Share(1, 0, 4))


def test_a_checkpoint_says_how_deepspeed_shared_it_out():
    config = from_values({"base": "b", "data": "d", "output": "o"})
    assert config.identity(2, "DeepSpeed ZeRO-3")["sharding"] == "DeepSpeed ZeRO-3 in 2"
    assert config.identity(2, "FSDP2") == config.identity(2)


def test_a_row_that_fills_a_batch_of_text_changes_nothing_that_is_learnt():
    ids, image = torch.tensor([1, 5, 6]), torch.zeros(1, 3, 4, 4)
    text = {"sample_id": "t", "input_ids": ids, "labels": ids, "pixel_values": None, "choices": {}}
    row = {
        "sample_id": "",
        "input_ids": torch.full((5,), 9),
        "labels": torch.full((5,), -100),
        "pixel_values": image,
        "choices": {},
    }
    filled = with_filler(collate([text], pad_token_id=0), collate([row], pad_token_id=0))
    assert filled["sample_ids"] == ["t"]
    assert filled["labels"].tolist() == [[1, 5, 6, -100, -100], [-100] * 5]
    assert filled["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert filled["pixel_values"].shape == image.shape
