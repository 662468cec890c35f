"""How far the answers of a model on fewer tokens are from those of the model that it was distilled from.

    python -m llava_stf_eval.measurement.divergence runs/mine --teacher tiny-full --images 100

Writes divergence.json into the model's folder: the KL divergence of its distribution over the next token from the
teacher's, in nats, the mean over all tokens of the right answers to the questions about held-out drawn images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llava_stf.data.preparation import Preparation
from llava_stf.data.templates import template_of
from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf.io.publish import write_json
from llava_stf.training.data import collate
from llava_stf.training.distill import answer_log_probabilities, answers
from llava_stf.world import draw, questions_of
from llava_stf.world.dataset import turns_about_image

if TYPE_CHECKING:
    from llava_stf import LlavaStf

DIVERGENCE = "divergence.json"
BATCH = 16


def held_out_records(images: int, seed: int = 0) -> list[Mapping[str, Any]]:
    """The first held-out images of a seed, each with all its questions and right answers as one conversation."""
    records: list[Mapping[str, Any]] = []
    for index in range(images):
        scene, pixels = draw(index, seed=seed, split="held_out")
        asked = questions_of(scene, index, seed=seed, split="held_out")
        turns = turns_about_image([(question.text, question.answer) for question in asked])
        records.append({"id": str(index), "image": Image.fromarray(pixels), "conversations": turns})
    return records


@torch.inference_mode()
def log_probabilities(llava: LlavaStf, records: Sequence[Mapping[str, Any]]) -> Iterator[Tensor]:
    """Of the tokens of the records' answers, batch by batch: float32 [tokens, vocabulary]."""
    assert llava.processor is not None  # it came with the model
    prepare = Preparation(
        llava.processor, name="", images=Path(), template=template_of(llava.processor), max_length=2048
    )
    for start in range(0, len(records), BATCH):
        rows = [prepare(record, number) for number, record in enumerate(records[start : start + BATCH])]
        batch = collate(rows, pad_token_id=llava.processor.tokenizer.pad_token_id)
        asked = answers(batch.pop("labels"))
        del batch["sample_ids"]
        yield answer_log_probabilities(llava.model(**batch).logits[:, :-1][asked])


def divergence(student: LlavaStf, teacher: LlavaStf, records: Sequence[Mapping[str, Any]]) -> float:
    """The mean KL divergence of the student from the teacher over the records' answers, in nats a token.

    Both answer with one tokenizer, on the CPU.
    """
    total, tokens = 0.0, 0
    for found, target in zip(log_probabilities(student, records), log_probabilities(teacher, records), strict=True):
        total += F.kl_div(found, target, reduction="sum", log_target=True).item()
        tokens += len(target)
    return total / tokens


def main() -> None:
    """The command."""
    from llava_stf import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the model")
    parser.add_argument("--teacher", default="tiny-full")
    parser.add_argument("--images", type=count, default=100)
    options = parser.parse_args()
    student = load_model(options.run, device="cpu", dtype="float32")
    teacher = load_model(options.teacher, vision_tokens="all", device="cpu", dtype="float32")
    value = divergence(student, teacher, held_out_records(options.images))
    write_json(options.run / DIVERGENCE, {"divergence": value, "images": options.images})


if __name__ == "__main__":
    run(main)
