"""Runs that are killed, terminated, poisoned or out of disk, and runs in two processes, against undisturbed ones."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from llava_stf import load_model
from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import open_records
from llava_stf.io.runs import PARTIAL, checkpoint_step, newest_checkpoint
from llava_stf.training.finetune import main
from llava_stf.training.sampling import EpochSampler


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


STEPS = 10  # of 2 x 2 samples; an epoch of the 12 samples has 3


@pytest.fixture(scope="module")
def base(llava_base, tmp_path_factory):
    """The plain LLaVA with dropout in its language model: training draws random numbers."""
    folder = tmp_path_factory.mktemp("dropout") / "base"
    shutil.copytree(llava_base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def command_line(output, base, data_folder, *flags, **options):
    values = {
        "base": base,
        "data": data_folder / "instruct.json",
        "output": output,
        "per_device_batch_size": 2,
        "gradient_accumulation": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "cpu_threads": 1,
        "logging_steps": 3,
        "save_steps": 2,
        "bf16": False,
        "num_workers": 0,
        **options,
    }
    return [*(f"--{name}={value}" for name, value in values.items()), *flags]


@pytest.fixture
def arguments(tmp_path, base, data_folder):
    """Makes the command line of a run into the folder `name`."""
    return lambda name, *flags, **options: command_line(
        tmp_path / name, options.pop("base", base), data_folder, *flags, **options
    )


@pytest.fixture
def processes(start):
    """Starts runs in processes of their own."""
    return partial(start, program="llava_stf.training.finetune:main")


def until(condition, process, seconds=300):
    """Wait for a condition; a process that ends, or never fulfils it, is an error."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, f"ended with {process.exitcode}"
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def children(process):
    return psutil.Process(process.pid).children()


def signal_all(process, number):
    """Send a signal to a process and to its workers."""
    for other in children(process):
        other.send_signal(number)
    os.kill(process.pid, number)


def history(output):
    state = json.loads((newest_checkpoint(output) / "trainer_state.json").read_text())
    return [line for line in state["log_history"] if "loss" in line]


def curve(output):
    return {line["step"]: line["loss"] for line in history(output)}


def assert_same_result(found, expected, *, atol=1e-6):
    assert curve(found) == pytest.approx(curve(expected), abs=1e-5)
    assert_same_weights(found, expected, atol=atol)


def assert_same_weights(found, expected, *, atol=1e-6):
    weights, wanted = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=atol, msg=name)


@pytest.fixture(scope="module")
def undisturbed(base, data_folder, tmp_path_factory):
    """The folder of a run that nothing happened to, for comparison."""
    whole = tmp_path_factory.mktemp("undisturbed") / "whole"
    assert main(command_line(whole, base, data_folder)) == 0
    assert list(curve(whole)) == [2, 3, 4, 6, 8, 9, 10]
    return whole


def test_killed_run_ends_where_the_undisturbed_one_does(arguments, processes, undisturbed, tmp_path):
    output = tmp_path / "killed"
    moments = [
        lambda: newest_checkpoint(output) is not None and (output / PARTIAL).exists(),  # in the second checkpoint
        lambda: (output / "checkpoint-6").exists(),  # between two checkpoints
    ]
    for moment in moments:
        process = processes(arguments("killed", "--resume", num_workers=1))
        until(moment, process)
        signal_all(process, signal.SIGKILL)
        process.join()
        assert not (output / "config.json").exists()
        assert 1 <= len(list(output.glob("checkpoint-*"))) <= 3
        assert all(checkpoint_step(folder) >= 0 for folder in output.glob("checkpoint-*"))
    assert main(arguments("killed", "--resume")) == 0
    assert_same_result(output, undisturbed)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-8"]
    assert not (output / PARTIAL).exists()


def test_run_killed_before_its_model_is_written_takes_no_further_step(arguments, undisturbed, tmp_path):
    output = shutil.copytree(undisturbed, tmp_path / "finished")
    for name in ("config.json", "model.safetensors"):
        (output / name).unlink()
    assert main(arguments("finished", "--resume")) == 0
    assert_same_result(output, undisturbed, atol=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_writes_a_checkpoint_and_goes_on_later(arguments, processes, undisturbed, tmp_path, number):
    output = tmp_path / "stopped"
    process = processes(arguments("stopped", num_workers=1))
    until(lambda: newest_checkpoint(output) is not None, process)
    signal_all(process, number)  # as a machine does that is taken away, and as a terminal does
    process.join(300)
    assert process.exitcode == 128 + number
    assert 2 < checkpoint_step(newest_checkpoint(output)) < STEPS
    assert not (output / "config.json").exists()
    assert main(arguments("stopped", "--resume")) == 0
    assert_same_weights(output, undisturbed)


@pytest.fixture
def poisoned(base, tmp_path):
    """The base with infinite embeddings for the character Q, and data of 12 samples, of which the one `q` has it."""
    folder = shutil.copytree(base, tmp_path / "poisoned")
    weights = load_file(folder / "model.safetensors")
    token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("Q")
    weights["language_model.model.embed_tokens.weight"][token] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    samples = [
        {"id": name, "conversations": turns("Hello?", "Q" if name == "q" else "Hello.")} for name in "abcdefghijkq"
    ]
    (tmp_path / "poisoned.json").write_text(json.dumps(samples))
    return {"base": folder, "data": tmp_path / "poisoned.json", "group_by_length": "false"}


@pytest.mark.parametrize("max_grad_norm", [1, 0], ids=["clipped", "unclipped"])
def test_loss_that_is_not_finite_stops_at_its_step_and_names_its_samples(
    arguments, poisoned, tmp_path, capsys, max_grad_norm
):
    for seed in range(100):  # in the third step, behind a checkpoint
        order = list(EpochSampler(12, 4, seed, lambda: 0))
        if order.index(11) // 4 == 2:
            break
    batch = order[order.index(11) // 2 * 2 :][:2]
    assert main(arguments("out", seed=seed, logging_steps=100, max_grad_norm=max_grad_norm, **poisoned)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    names = ", ".join("abcdefghijkq"[number] for number in batch)
    assert f"not finite at step 3, in the samples {names}: " in error
    assert error.endswith(f"the last good checkpoint is {tmp_path / 'out' / 'checkpoint-2'}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-2"]


def test_full_disk_keeps_the_last_checkpoint(arguments, undisturbed, tmp_path, capsys):
    output = shutil.copytree(undisturbed, tmp_path / "full")
    for name in ("checkpoint-8", "config.json", "model.safetensors"):
        path = output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = load_file(output / "checkpoint-10" / "model.safetensors")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    more = arguments("full", "--resume", max_steps=14, save_total_limit=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # a write beyond fails, as on a full disk
    try:
        assert main(more) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot write checkpoint-12 to {output} (")
    assert error.endswith(f"the last good checkpoint is {output / 'checkpoint-10'}")
    assert not (output / PARTIAL).exists()
    after = load_file(output / "checkpoint-10" / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert main(more) == 0
    assert newest_checkpoint(output) == output / "checkpoint-14"


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.19"),
    reason="transformers 5.17 maps the optimizer of several CPU processes to 'cpu:0', which torch does not know",
)
def test_two_processes_end_where_one_does_and_resume_its_run(arguments, llava_base, tmp_path):
    """From the middle of the second epoch on; without dropout, which every process draws for itself."""
    options = {"base": llava_base, "logging_steps": 1, "save_steps": 4, "save_total_limit": 3}
    assert main(arguments("one", **options, per_device_batch_size=4, gradient_accumulation=1)) == 0
    two = tmp_path / "two"
    shutil.copytree(tmp_path / "one" / "checkpoint-4", two / "checkpoint-4")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "llava_stf.training.finetune"),
        *arguments("two", "--resume", **options, gradient_accumulation=1),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_result(two, tmp_path / "one", atol=1e-5)

    def tokens_per_sample(output):
        return [line["tokens_per_second"] / line["samples_per_second"] for line in history(output)]

    assert tokens_per_sample(two) == pytest.approx(tokens_per_sample(tmp_path / "one"), rel=0.02)


def test_throughput_counts_samples_and_tokens_without_padding(arguments, records, llava_base, data_folder, tmp_path):
    started = time.perf_counter()
    assert main(arguments("out", per_device_batch_size=4, gradient_accumulation=3, max_steps=2, logging_steps=2)) == 0
    longest = time.perf_counter() - started
    (line,) = history(tmp_path / "out")
    assert line["samples_per_second"] > 24 / longest
    assert 0 < line["data_share"] < 1
    rows = open_records(str(data_folder / "instruct.json"))
    prepare = Preparation(load_model(llava_base).processor, name="", images=data_folder, template="v1", max_length=2048)
    tokens = [len(prepare(rows[number], number)["input_ids"]) for number in range(len(rows))]
    assert line["tokens_per_second"] / line["samples_per_second"] == pytest.approx(sum(tokens) / 12, rel=0.01)


@pytest.mark.parametrize(("samples", "steps"), [(12, 3), (13, 4), (5, 2)])
def test_epochs_have_whole_steps_and_an_order_of_their_own(samples, steps):
    def epoch(number):
        return list(EpochSampler(samples, 4, 7, lambda: number * steps))

    first, second = epoch(0), epoch(1)
    assert len(first) == len(second) == 4 * steps
    assert sorted(first[:samples]) == sorted(second[:samples]) == list(range(samples))
    assert first[samples:] == (first * 2)[: 4 * steps - samples]
    assert first != second
    assert list(EpochSampler(samples, 4, 7, lambda: 2 * steps - 1)) == second
