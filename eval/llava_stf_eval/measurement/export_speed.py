"""Exports beside PyTorch on a CPU: first token, further tokens and memory, with random weights of a shape.

    python -m llava_stf_eval.measurement.export_speed --shape 1b --output docs/speed/export-cpu.json
    python -m llava_stf_eval.measurement.export_speed --layers 4 --blocks 4    # a part of it

Every row is a process of its own, so that its memory is its own. They follow each other, round after round, each on one
core and after one answer that is not counted. What is counted are the seconds that the process computes, which another
program on the machine does not add to.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_stf import apply_stf
from llava_stf.errors import ExportError, LlavaStfError
from llava_stf.export.model import ExportedLlava, ExportedLlavaConfig
from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf.io.publish import publish, refuse_unwritable, write_json
from llava_stf_eval.measurement.process import memory
from llava_stf_eval.speed.machine import describe_machine
from llava_stf_eval.speed.shapes import SHAPES, shape_config

ROWS = [(by, tokens) for tokens in (576, 144) for by in ("pytorch bfloat16", "pytorch float32", "openvino fp32",
                                                         "openvino int8", "openvino int4")]  # fmt: skip
TEXT, SIDE = 64, 336  # tokens, and pixels that give 576 patches
ABOUT = "about.json"


def config_of(options: argparse.Namespace) -> LlavaConfig:
    """The shape with as many layers and blocks as were asked for."""
    config = shape_config(options.shape)
    config.text_config.num_hidden_layers = options.layers or config.text_config.num_hidden_layers
    config.vision_config.num_hidden_layers = options.blocks or config.vision_config.num_hidden_layers
    return config


def build(options: argparse.Namespace, tokens: int, dtype: torch.dtype) -> Any:
    """The model of a shape with random weights, on all 576 tokens or fused to 144."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config_of(options)).eval().requires_grad_(False).to(dtype)
    return apply_stf(model) if tokens == 144 else model


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What exports are of."""
    config = config_of(options)
    layers, blocks = config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers
    return {"shape": options.shape, "layers": layers, "blocks": blocks}


def export(options: argparse.Namespace, folder: Path) -> None:
    """Traced once for each number of tokens, and read back for each precision."""
    import openvino as ov

    from llava_stf.export.openvino_files import DECODER, EMBEDDINGS, VISION, save_part, write_openvino

    with publish(folder) as written:
        for tokens in (576, 144):
            exact = written / f"fp32-{tokens}"
            exact.mkdir()
            write_openvino(build(options, tokens, torch.float32), exact, "fp32", "f32")
            for weights in ("int8", "int4"):
                small = written / f"{weights}-{tokens}"
                small.mkdir()
                for part in (VISION, EMBEDDINGS, DECODER):
                    if part == VISION or tokens == 576:
                        save_part(ov.Core().read_model(exact / part), small / part, weights, "f32")
                    else:  # the same for every number of tokens
                        for file in (written / f"{weights}-576").glob(f"{Path(part).stem}.*"):
                            (small / file.name).hardlink_to(file)
        write_json(written / ABOUT, about(options))


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Make the exports in a process of their own, unless they are there.

    Raises:
        ExportError: the folder holds something else.
        LlavaStfError: they could not be made.
    """
    if not folder.exists():
        maker = multiprocessing.get_context("fork").Process(target=export, args=(options, folder))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise LlavaStfError(
                f"The process that exports to {folder} ended with {maker.exitcode}, see what it printed."
            )
        return
    try:
        found = json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{folder} holds no exports of this command, {ABOUT} cannot be read; name another."
        ) from error
    if found != about(options):
        raise ExportError(f"Expected exports of {about(options)} in {folder}, found {found}; name another folder.")


def load(options: argparse.Namespace, by: str, tokens: int, folder: Path) -> Any:
    """The model of a row."""
    kind, precision = by.split()
    if kind == "pytorch":
        return build(options, tokens, getattr(torch, precision))
    from llava_stf.export.openvino_engine import OpenVinoEngine

    config = ExportedLlavaConfig.from_dict(shape_config(options.shape).to_dict(), vision_tokens=tokens)
    engine = OpenVinoEngine(folder / f"{precision}-{tokens}", exact=precision == "fp32")
    return ExportedLlava(config, engine, GenerationConfig(pad_token_id=0))


def answer(model: Any, tokens: int, new_tokens: int) -> tuple[float, float]:
    """Seconds of computing to the first token, and for one further token."""
    marks: list[float] = []

    def mark(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        marks.append(time.process_time())
        return torch.zeros(len(ids), dtype=torch.bool)

    ids = torch.randint(3, 1000, (1, TEXT + tokens))
    ids[:, 8 : 8 + tokens] = model.config.image_token_id
    pixels = torch.randn(1, 3, SIDE, SIDE).to(model.dtype)
    start = time.process_time()
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, do_sample=False, eos_token_id=None,
        max_new_tokens=new_tokens, stopping_criteria=[mark],
    )  # fmt: skip
    return marks[0] - start, (marks[-1] - marks[0]) / (len(marks) - 1)


def worker(wire: Connection, options: argparse.Namespace, by: str, tokens: int, folder: Path) -> None:
    """Answers twice; sends the seconds of the second time, and bytes that are resident and those of no file."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    model = load(options, by, tokens, folder)
    answer(model, tokens, 2)
    times = answer(model, tokens, options.new_tokens)
    wire.send((*times, *memory(os.getpid(), "VmRSS", "RssAnon")))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    shapes = [name for name, (tower, _) in SHAPES.items() if tower["image_size"] == SIDE]
    parser.add_argument("--shape", choices=shapes, default="1b")
    parser.add_argument("--layers", type=count, help="of the language model; default: all of the shape")
    parser.add_argument("--blocks", type=count, help="of the tower; default: all of the shape")
    parser.add_argument("--new-tokens", type=count, default=9, help="2 or more")
    parser.add_argument("--rounds", type=count, default=3, help="of all rows")
    parser.add_argument("--exports", type=Path, help="a folder that keeps them for another run of the same shape")
    parser.add_argument("--output", type=Path, default=Path("runs/export-cpu.json"))
    options = parser.parse_args()
    if options.new_tokens == 1:
        raise LlavaStfError("Further tokens are timed as well: --new-tokens must be at least 2, found 1.")
    refuse_unwritable(options.output.parent)
    context = multiprocessing.get_context("fork")
    with TemporaryDirectory() as name:
        folder = options.exports or Path(name) / "exports"
        prepare(options, folder)
        found: dict[Any, list[Any]] = {row: [] for row in ROWS}
        for number in range(options.rounds):
            for row in ROWS:
                here, there = context.Pipe()
                process = context.Process(target=worker, args=(there, options, *row, folder))
                process.start()
                there.close()
                try:
                    found[row].append(here.recv())
                except EOFError:
                    process.join()
                    raise LlavaStfError(f"The process of {row} ended with {process.exitcode}.") from None
                process.join()
                print(number, *row, *found[row][-1], flush=True)
    rows = []
    for (by, tokens), runs in found.items():
        names = ("first_token", "further_token", "resident_bytes", "anonymous_bytes")
        medians = {name: statistics.median(column) for name, column in zip(names, zip(*runs, strict=True), strict=True)}
        rows.append({"run_by": by, "vision_tokens": tokens, **medians})
    plan = {name: str(value) for name, value in vars(options).items() if name not in ("exports", "output")}
    write_json(options.output, {"machine": describe_machine(torch.device("cpu")), "plan": plan, "rows": rows})


if __name__ == "__main__":
    run(main)
