"""Training runs on a tiny model: what changes, what stays, and how a run goes on after an interruption."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_stf.errors import LlavaStfError
from llava_stf.io.runs import newest_checkpoint, prepare_output, remove_run
from llava_stf.training.config import from_values
from llava_stf.training.finetune import load_start, main, training_arguments
from llava_stf.training.optim import part_of

DDP = Path(__file__).resolve().parents[2] / "scripts" / "accelerate" / "ddp.yaml"


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed_parts(before, after):
    assert before.keys() == after.keys()
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def stf_start(llava_base, tmp_path_factory):
    """The base with its warm-started STF projector, saved before any training."""
    from llava_stf import load_model

    folder = tmp_path_factory.mktemp("start")
    model, processor = load_model(llava_base)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_align_changes_the_projector_alone(run, stf_start):
    output = run(data="align.json", stage="align")
    assert changed_parts(weights(stf_start), weights(output)) == {"projector"}


def test_instruct_changes_projector_and_llm_and_leaves_the_tower_bit_identical(run, stf_start):
    before, after = weights(stf_start), weights(run(bf16=True))
    assert changed_parts(before, after) == {"projector", "language_model"}


def test_the_tower_is_trained_when_it_has_a_learning_rate(run, stf_start):
    after = weights(run(vision_tower_learning_rate=1e-2))
    assert changed_parts(weights(stf_start), after) == {"projector", "language_model", "vision_tower"}


def test_each_part_moves_by_its_own_learning_rate(run, stf_start):
    """AdamW's first step moves a weight by about the learning rate, whatever its gradient."""
    options = {"projector_learning_rate": 1e-2, "learning_rate": 1e-4, "scheduler": "constant_with_warmup"}
    before, after = weights(stf_start), weights(run(max_steps=1, warmup_ratio=0, **options))
    moved = {"projector": 0.0, "language_model": 0.0, "vision_tower": 0.0}
    for name, value in before.items():
        moved[part_of(name)] = max(moved[part_of(name)], (after[name] - value).abs().max().item())
    assert moved["projector"] == pytest.approx(1e-2, rel=0.05)
    assert moved["language_model"] == pytest.approx(1e-4, rel=0.05)
    assert moved["vision_tower"] == 0


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({}, 4), ({"reduction": "pool"}, 4), ({"vision_tokens": "all"}, 16), ({"vision_tokens": 1}, 1)],
    ids=["stf", "pool", "all", "one"],
)
def test_a_trained_model_loads_answers_and_keeps_its_token_count(run, data_folder, options, tokens):
    from llava_stf import load_model
    from llava_stf_eval.benchmarks.models import ModelOptions

    output = run(max_steps=1, **options)
    llava = load_model(output)
    inputs = llava.processor(images=None, text="hello", return_tensors="pt")
    assert inputs["input_ids"].shape[0] == 1
    assert isinstance(llava.ask(data_folder / "red.png", "What colour is it?", max_new_tokens=2), str)
    _, processor = llava
    assert processor.num_image_tokens([(56, 56)]) == [tokens]
    assert ModelOptions(str(output)).resolved().vision_tokens == tokens  # benchmarks and speed ask it so, too


def test_training_lowers_the_loss_and_logs_samples_per_second(run):
    output = run(max_steps=30, save_steps=30)
    history = json.loads((newest_checkpoint(output) / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in history if "loss" in line]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert all(line["samples_per_second"] > 0 for line in history if "loss" in line)


def test_batches_of_text_alone_train(run, tmp_path):
    text = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]
    file = tmp_path / "text.json"
    file.write_text(json.dumps([{"id": "a", "conversations": text}]))
    output = run(data=file, per_device_batch_size=1, max_steps=4)
    assert all(torch.isfinite(value).all() for value in weights(output).values())


def test_a_run_without_anything_to_learn_is_an_error_and_leaves_no_model(run, tmp_path):
    quoting = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "It says ASSISTANT: stop."}]
    file = tmp_path / "text.json"
    file.write_text(json.dumps([{"id": "b", "conversations": quoting}] * 3))
    with pytest.raises(
        LlavaStfError, match=r"sample b .*nothing to learn.*3 of 3 samples seen are bad \(3 no target\)"
    ):
        run(data=file, per_device_batch_size=1, max_steps=4, max_bad_samples=0.99)
    assert not (tmp_path / "out" / "config.json").exists()


def test_resumed_run_ends_where_the_uninterrupted_one_does(run):
    whole = run("whole", max_steps=8, save_steps=4, save_total_limit=2)
    cut = run("cut", max_steps=8, save_steps=4, save_total_limit=2)
    # As after a kill while step 8 is being saved: the later checkpoint half-written, no model yet.
    (cut / "checkpoint-8" / "trainer_state.json").unlink()
    state_file = cut / "checkpoint-4" / "trainer_state.json"
    state_file.write_text(state_file.read_text().replace('"log_history": [', '"log_history": [{"mark": 1},'))
    for name in ("config.json", "model.safetensors"):
        (cut / name).unlink()
    run("cut", max_steps=8, save_steps=4, resume=True)
    state = json.loads((newest_checkpoint(cut) / "trainer_state.json").read_text())
    assert state["log_history"][0] == {"mark": 1}
    assert [line["step"] for line in state["log_history"] if "loss" in line] == list(range(1, 9))
    expected, found = weights(whole), weights(cut)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6, msg=name)


def test_resume_without_a_checkpoint_starts_afresh(run):
    assert (run(max_steps=1, resume=True) / "config.json").exists()


def test_a_model_without_a_checkpoint_is_not_resumed_and_left_alone(run, llava_base, tmp_path):
    shutil.copytree(llava_base, tmp_path / "base")
    before = weights(llava_base)
    with pytest.raises(LlavaStfError, match="holds a model, and no checkpoint to go on from"):
        run("base", base=str(tmp_path / "base"), max_steps=1, resume=True)
    assert changed_parts(before, weights(tmp_path / "base")) == set()


def test_another_runs_output_is_refused_and_left_alone(run):
    output = run(max_steps=1)
    before = weights(output)
    with pytest.raises(LlavaStfError, match="already holds a run"):
        run(max_steps=1)
    assert changed_parts(before, weights(output)) == set()


def test_incomplete_checkpoints_are_not_resumed_from_and_removed(tmp_path):
    for step, state in ((10, '{"global_step": 10}'), (20, '{"global_st'), (9, '{"global_step": 9}')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert prepare_output(tmp_path, resume=True) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_an_output_that_takes_no_files_is_refused_before_the_first_step():
    with pytest.raises(LlavaStfError, match="/proc/self cannot be written to"):
        prepare_output(Path("/proc/self"), resume=False)


def test_folders_that_only_begin_as_checkpoints_do_are_the_users_own(tmp_path):
    for name in ("checkpoint-5", "checkpoint-7-best", "checkpoint-notes"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-5", "checkpoint-7-best"):
        (tmp_path / name / "trainer_state.json").write_text('{"global_step": 7}')
    assert prepare_output(tmp_path, resume=True) == tmp_path / "checkpoint-5"
    prepare_output(tmp_path, resume=False, overwrite=True)
    remove_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7-best", "checkpoint-notes"]
    assert prepare_output(tmp_path, resume=False) is None


def test_bf16_computes_in_bfloat16_on_a_cpu_with_float32_weights(tmp_path, llava_base, data_folder):
    from llava_stf.training.trainer import FinetuneTrainer

    config = from_values({"base": str(llava_base), "data": "d", "output": str(tmp_path / "out"), "bf16": True})
    model, _ = load_start(config, None)
    arguments = training_arguments(config)
    trainer = FinetuneTrainer(config, budgets=[4], prepared_budget=4, model=model, args=arguments, train_dataset=[0])
    wrapped = trainer.accelerator.prepare_model(model)
    seen = []
    model.model.language_model.layers[0].mlp.up_proj.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    wrapped(input_ids=torch.tensor([[1, 5, 6]]))
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_save_dtype_is_the_dtype_on_disk(run):
    output = run(max_steps=1, save_dtype="bfloat16")
    assert {value.dtype for value in weights(output).values()} == {torch.bfloat16}


def test_user_errors_are_one_sentence_and_exit_code_2(run, tmp_path, llava_base, data_folder, capsys):
    flags = ["--base", str(llava_base), "--data", str(data_folder / "none.json"), "--output", str(tmp_path / "out")]
    assert main(flags) == 2
    assert main([*flags, "--learning-rat", "1"]) == 2
    error = capsys.readouterr().err
    assert "none.json" in error
    assert "learning_rate" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_malformed_sample_is_named_in_one_sentence(run, tmp_path, workers):
    file = tmp_path / "bad.json"
    file.write_text(json.dumps([{"id": "b7", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}]))
    with pytest.raises(LlavaStfError) as error:
        run(data=file, num_workers=workers)
    assert str(error.value).startswith("sample b7 of bad.json")
    assert "\n" not in str(error.value)


def test_accelerate_launch_starts_processes_that_train_together_on_cpus_too(run, tmp_path, run_options):
    """With the configuration for several GPUs: `--cpu` starts one process. Its `mixed_precision` is not ours."""
    expected = weights(run("one"))
    values = run_options("two", per_device_batch_size=2)
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(DDP), "--num_processes", "2"),
        *("--main_process_port", "0", "-m", "llava_stf.training.finetune"),
        *(f"--{name}={value}" for name, value in values.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("'samples_per_second'") == 3  # of the first process alone
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4, msg=name)


def test_the_log_is_ours_and_ends_with_the_use_of_the_model(run_options, data_folder, tmp_path):
    records = json.loads((data_folder / "instruct.json").read_text())
    bad = {"id": "b7", "conversations": [{"from": "human", "value": "What?"}]}
    (tmp_path / "data.json").write_text(json.dumps([*records[:3], bad]))
    values = run_options("my run", max_steps=1, lora_rank=2, max_bad_samples=0.5, images=data_folder)
    values["data"] = tmp_path / "data.json"
    flags = [f"--{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "llava_stf.training.finetune", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(" llava_stf" in line or line.startswith("[transformers] The tokenizer has new") for line in lines), lines
    assert any("sample b7 of data.json" in line for line in lines)
    output = tmp_path / "my run"
    assert f"load_model('{output}') in Python, llava-stf ask IMAGE QUESTION --model '{output}'" in lines[-2]
    assert lines[-1].endswith(f"its base {values['base']}: llava-stf merge '{output}' FOLDER makes one model of both")
