"""Training in this process, and in several that share out the weights."""

import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from llava_stf import load_model
from llava_stf.io.runs import newest_checkpoint
from llava_stf.training.data import collate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_options(tmp_path, llava_base, data_folder):
    """Makes the options of a run into the folder `name`."""

    def make(name="out", data="instruct.json", **others):
        values = {
            "base": str(llava_base),
            "data": str(data_folder / data),
            "output": str(tmp_path / name),
            "per_device_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "num_workers": 0,
            "cpu_threads": 1,
            "logging_steps": 1,
            "bf16": False,
        }
        return {**values, **others}

    return make


@pytest.fixture
def run(tmp_path, run_options):
    """Trains in this process and returns the output folder."""

    from llava_stf.training.config import from_values
    from llava_stf.training.finetune import finetune

    def start(name="out", **others):
        finetune(from_values(run_options(name, **others)))
        return tmp_path / name

    return start


def launched(config, processes):
    """The environment that `accelerate launch` gives each process, by the shipped configuration of that name."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [f"--config_file={ROOT / 'scripts' / 'accelerate' / config}", f"--num_processes={processes}"]
    found, file, _ = _validate_launch_command(launch_command_parser().parse_args([*command, "unused.py"]))
    found.main_process_port = int(port)
    if found.use_deepspeed:
        found.deepspeed_fields_from_accelerate_config = ",".join(file.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(found)[1]
    else:
        environment = prepare_multi_gpu_env(found)
    set_there = {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    together = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [set_there | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


class Processes:
    """Of one run, started together."""

    def __init__(self, started, logs):
        self.started, self.logs = started, logs

    def log(self):
        """What all of them printed."""
        return "".join(log.read_text(errors="replace") for log in self.logs if log.exists())

    def wait(self, seconds=240):
        """Exit codes."""
        for process in self.started:
            process.join(seconds)
        return [process.exitcode for process in self.started]


@pytest.fixture
def run_in(start, tmp_path, run_options):
    """Starts a run in several processes that share out the weights; `program` is what each of them runs."""
    here = str(Path(__file__).with_name("shard_on_cpus.py"))

    def begin(processes, name, *flags, config="fsdp2.yaml", program=f"{here}:main", environment=None, **others):
        values = run_options(name, **{"per_device_batch_size": 4 // processes, **others})
        arguments = [*(f"--{option}={value}" for option, value in values.items()), *flags]
        logs = [tmp_path / f"{name}-{rank}.log" for rank in range(processes)]
        started = [
            start(arguments, program=program, output=log, **launched_there, **(environment or {}))
            for log, launched_there in zip(logs, launched(config, processes), strict=True)
        ]
        return Processes(started, logs)

    return begin


@pytest.fixture
def same_run():
    """Compares the output of a run in several processes with that of one process, see `test_sharded.py`."""

    def history(output):
        state = json.loads((newest_checkpoint(output) / "trainer_state.json").read_text())
        return [(line["loss"], line["grad_norm"]) for line in state["log_history"] if "loss" in line]

    def weights(folder):
        return load_file(next(folder.glob("*model.safetensors")))

    def compare(found, expected):
        assert [loss for loss, _ in history(found)] == pytest.approx([loss for loss, _ in history(expected)], abs=2e-6)
        assert [norm for _, norm in history(found)] == pytest.approx([norm for _, norm in history(expected)], rel=1e-5)
        after, wanted = weights(found), weights(expected)
        assert after.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(after[name], value, rtol=0, atol=2e-4, msg=name)

    return compare


@torch.no_grad()
def divergence_from_all_tokens(base, rows, prepare):
    """Of the warm-started student from the model at all its tokens, sample by sample, from both as users load them."""
    teacher, student = (load_model(base, vision_tokens=tokens, dtype="float32") for tokens in ("all", None))
    divergence, count = 0.0, 0
    for number in range(len(rows)):
        rates = []
        for llava in (teacher, student):
            batch = collate([prepare(llava)(rows[number], number)], pad_token_id=0)
            labels = batch["labels"][0]
            del batch["sample_ids"], batch["labels"]
            logits = llava.model(**batch).logits[0, :-1]
            rates.append(functional.log_softmax(logits[labels[1:] != -100], dim=-1))
        divergence += (rates[0].exp() * (rates[0] - rates[1])).sum()
        count += len(rates[0])
    return float(divergence / count)
