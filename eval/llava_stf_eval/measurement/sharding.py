"""Samples a second, CPU time, the share of communication in it, and memory of training in one process and in two.

    python -m llava_stf_eval.measurement.sharding [FOLDER]      in a checkout; default: runs/sharding

It prints the table of docs/training.md.

A random LLaVA of 20 million weights, stage instruct in float32, 2 samples of about 230 tokens a step, one torch thread
a process, on CPUs. CPU time counts on a machine with other work, too, and leaves out what processes wait for each
other; samples a second by it are those of the slower process where no other work runs and nothing is waited for. The
share of communication is what both take more than two that train apart, each on its half. Memory is the
largest that a process has in its steps, resident or swapped, less what it has after its imports; a whole model is read
before.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import runpy
import statistics
import sys
import threading
import time
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from llava_stf.errors import LlavaStfError
from llava_stf.io.command import run
from llava_stf.io.publish import refuse_unwritable
from llava_stf.loading.testing import write_tiny_llava
from llava_stf.training.finetune import main as finetune_main
from llava_stf.training.trainer import FinetuneTrainer
from llava_stf_eval.measurement.process import memory

SHARD_ON_CPUS = Path(__file__).parents[3] / "tests/training/shard_on_cpus.py"
STEPS = 6
M_MMAP_THRESHOLD = -3
RUNS = {
    "one process": ("plain", 1),
    "two, apart": ("apart", 2),
    "two, DDP": ("plain", 2),
    "two, FSDP2": ("FSDP2", 2),
}


def write_inputs(folder: Path) -> None:
    """A model, and 64 short conversations about one image."""
    from PIL import Image
    from transformers import AutoConfig, LlavaForConditionalGeneration

    base = write_tiny_llava(folder / "base", stf=False)
    config = AutoConfig.from_pretrained(base)
    config.text_config.update(
        {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8}
    )
    config.text_config.update({"num_key_value_heads": 8, "head_dim": 64})
    LlavaForConditionalGeneration(config).save_pretrained(base)
    Image.new("RGB", (56, 56), "red").save(folder / "red.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]
    (folder / "data.json").write_text(
        json.dumps([{"id": str(i), "image": "red.png", "conversations": turns} for i in range(64)])
    )


def train(folder: Path, name: str, kind: str, processes: int, rank: int) -> None:
    """One process of a run, forked; writes its output to a log and its figures to FOLDER/NAME-RANK.json."""
    log_file = os.open(log_of(folder, name, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    figures_file = folder / f"{name}-{rank}.json"
    if kind == "apart":
        processes, name = 1, f"{name}-{rank}"
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29561"}
    main = finetune_main
    if kind == "FSDP2":
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
        main = runpy.run_path(str(SHARD_ON_CPUS))["main"]
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # what is freed goes back at once
    times: list[tuple[float, float]] = []
    sizes: list[int] = []
    log, imported = FinetuneTrainer.log, size()

    def told(self: FinetuneTrainer, *values: Any) -> None:
        times.append((time.process_time(), time.perf_counter()))
        if len(times) == 2:
            threading.Thread(target=watch, args=(sizes, times), daemon=True).start()
        log(self, *values)

    FinetuneTrainer.log = told  # type: ignore[assignment]
    options = {
        "base": folder / "base",
        "data": folder / "data.json",
        "output": folder / name,
        "bf16": "false",
        "per_device_batch_size": 1 if kind == "apart" else 2 // processes,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_steps": 100,
        "num_workers": 0,
        "cpu_threads": 1,
    }
    if code := main([*(f"--{option}={value}" for option, value in options.items()), "--overwrite"]):
        sys.exit(code)
    figures_file.write_text(json.dumps({"peak": (max(sizes) - imported) / 2**30, "times": times}))


def log_of(folder: Path, name: str, rank: int) -> Path:
    """What a process of a run prints."""
    return folder / f"{name}-{rank}.log"


def size() -> int:
    """Bytes of this process, resident or swapped."""
    return sum(memory(os.getpid(), "VmRSS", "VmSwap"))


def watch(sizes: list[int], times: list[tuple[float, float]]) -> None:
    """Note the size of this process until the last step is done."""
    while len(times) < STEPS:
        sizes.append(size())
        time.sleep(0.01)


def measure(folder: Path, name: str, kind: str, processes: int) -> tuple[list[float], float, float]:
    """CPU seconds of a step in each process, seconds of the slowest by the clock, and peak GiB of a process.

    Times are the median of the steps without the first two.

    Raises:
        LlavaStfError: a process failed.
    """
    context = multiprocessing.get_context("fork")
    files = [folder / f"{name}-{rank}.json" for rank in range(processes)]
    children = [context.Process(target=train, args=(folder, name, kind, processes, rank)) for rank in range(processes)]
    for file, child in zip(files, children, strict=True):
        file.unlink(missing_ok=True)  # an earlier run's
        child.start()
    running: dict[Any, int] = {child.sentinel: rank for rank, child in enumerate(children)}
    while running:
        rank = running.pop(wait(list(running))[0])
        children[rank].join()
        if code := children[rank].exitcode:
            for other in running.values():  # it would wait for the one that has failed
                children[other].kill()
                children[other].join()
            raise LlavaStfError(f"Process {rank} of {name} ended with {code}; see {log_of(folder, name, rank)}.")
    told = [json.loads(file.read_text()) for file in files]
    cpu, wall = (
        [statistics.median(b[clock] - a[clock] for a, b in pairwise(figures["times"][1:STEPS])) for figures in told]
        for clock in (0, 1)
    )
    return cpu, max(wall), max(figures["peak"] for figures in told)


def report(folder: Path) -> None:
    """Measure all, and print the table."""
    refuse_unwritable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data.json").exists():
        write_inputs(folder)
    found = {name: measure(folder, name.replace(", ", "-").replace(" ", "-"), *run) for name, run in RUNS.items()}
    print("| | samples a second | by CPU time | CPU seconds a step, all processes | of these communication | memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    apart = sum(found["two, apart"][0])
    for name, (cpu, wall, peak) in found.items():
        talking = f"{1 - apart / sum(cpu):.0%}" if name in ("two, DDP", "two, FSDP2") else ""
        print(f"| {name} | {2 / wall:.2f} | {2 / max(cpu):.2f} | {sum(cpu):.2f} | {talking} | {peak:.2f} GiB |")


def main() -> None:
    """Measure into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/sharding"))
    report(parser.parse_args().folder)


if __name__ == "__main__":
    run(main)
