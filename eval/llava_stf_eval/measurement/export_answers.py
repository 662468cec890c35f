"""What exporting changes in answers: the bundled models on drawn held-out images, PyTorch beside every precision.

    python -m llava_stf_eval.measurement.export_answers --images 152 --output docs/evaluate/exports.json

Each row has the share of right answers and how many are, id for id, those of PyTorch in float32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL.Image import Image

from llava_stf import LlavaStf, load_model
from llava_stf.export.write import export_model
from llava_stf.inference import user_turn
from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf.io.exports import Format, KvCache, Weights
from llava_stf.io.publish import refuse_unwritable, write_json
from llava_stf.world.questions import is_right
from llava_stf_eval.drawn import MAX_NEW_TOKENS, held_out
from llava_stf_eval.speed.machine import describe_machine

EXPORTS: list[tuple[Format, Weights, KvCache]] = [
    ("openvino", "fp32", "f32"),
    ("openvino", "fp16", "f32"),
    ("openvino", "int8", "f32"),
    ("openvino", "int4", "f32"),
    ("openvino", "fp32", "u8"),
    ("onnx", "fp32", "f32"),
    ("onnx", "int8", "f32"),
]
WAYS: list[tuple[str, ...]] = [("pytorch", "float32"), ("pytorch", "bfloat16"), *EXPORTS]
BATCH = 64


def answer_ids(llava: LlavaStf, pairs: Sequence[tuple[Image, Any]]) -> list[list[int]]:
    """Greedy ids of each answer, up to the first end token."""
    rows: list[list[int]] = []
    end = llava.model.generation_config.eos_token_id
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        turns = [[user_turn(question.text, 1)] for _, question in batch]
        inputs = llava.encode(turns, [[image] for image, _ in batch])
        ids = llava.generate(inputs, max_new_tokens=MAX_NEW_TOKENS)[:, inputs["input_ids"].shape[1] :].tolist()
        rows += [row[: row.index(end)] if end in row else row for row in ids]
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", action="append", help="bundled or a folder; repeatable; default: tiny")
    parser.add_argument("--images", type=count, default=152, help="152 images have a thousand questions")
    labels = ["-".join(way) for way in WAYS]
    parser.add_argument("--only", action="append", choices=labels, help="repeatable; default: all")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.output:
        refuse_unwritable(options.output.parent)
    pairs = held_out(options.images, seed=0)
    rows: list[dict[str, Any]] = []
    for name in options.model or ["tiny"]:
        llava = load_model(name, device="cpu", dtype="float32")
        wanted = answer_ids(llava, pairs)
        with TemporaryDirectory() as folder:
            for way in WAYS:
                label = "-".join(way)
                if way == WAYS[0]:
                    asked, ids = llava, wanted
                elif options.only and label not in options.only:
                    continue
                elif way[0] == "pytorch":
                    asked = load_model(name, device="cpu", dtype=way[1])
                    ids = answer_ids(asked, pairs)
                else:
                    kind, weights, cache = next(export for export in EXPORTS if export == way)
                    out = Path(folder) / label
                    asked = load_model(export_model(llava, out, format=kind, weights=weights, kv_cache=cache))
                    ids = answer_ids(asked, pairs)
                texts = [
                    text.strip()
                    for text in asked.require_processor().tokenizer.batch_decode(ids, skip_special_tokens=True)
                ]
                right = sum(is_right(text, question.answer) for text, (_, question) in zip(texts, pairs, strict=True))
                equal = sum(one == other for one, other in zip(ids, wanted, strict=True))
                rows.append({"model": name, "run_by": label, "questions": len(pairs), "right": right, "equal": equal})
                print(json.dumps(rows[-1]), flush=True)
    if options.output:
        write_json(options.output, {"machine": describe_machine(llava.model.device), "rows": rows})


if __name__ == "__main__":
    run(main)
