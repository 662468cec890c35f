"""Train the bundled model's language model on text alone, with a captioned scene where the image will be.

It plays the part that Vicuna plays for LLaVA: afterwards the language model answers all families of questions, options
by letter among them, from what it is told. The lessons of `COURSE` follow each other; each ends when its exercises are
answered well enough, and is rehearsed in those that follow. Weights are float32; what is faster to compute in, bfloat16
or float32, depends on the CPU.

    python -m llava_stf.training.pretrain_language --output runs/language --resume
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerBase

from llava_stf.errors import DataError
from llava_stf.io.runs import describe_newest, prepare_output, read_state, save_model, save_state
from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.training.assemble_tiny import language_config, train_tokenizer
from llava_stf.training.course import COURSE, Lesson, Progress, draw_exercises, learning_rate
from llava_stf.training.lookup_weights import new_language_model
from llava_stf.training.optim import parameter_groups
from llava_stf.training.rows import DTYPES, Rows, embed, last_states, logits_of
from llava_stf.world.dataset import generator, questions_of
from llava_stf.world.exercises import Exercise, conversation
from llava_stf.world.families import FAMILIES
from llava_stf.world.scene import sample_scene

logger = logging.getLogger(__name__)
LOGGING_STEPS = 50
SCENES = 300


def pretrain_language(
    output: Path,
    *,
    course: Sequence[Lesson] = COURSE,
    config: Callable[[PreTrainedTokenizerBase], LlamaConfig] = language_config,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    save_steps: int = 500,
    stop_after: int | None = None,
    resume: bool = False,
) -> bool:
    """Train through the course; `output` gets checkpoints and in the end model and tokenizer.

    A run that stopped and goes on with `resume` does the same steps as one that was never stopped.

    Args:
        output: folder of the run.
        course: lessons in their order.
        config: gives the architecture for a tokenizer.
        dtype: of the computation; weights are float32.
        seed: of weights and exercises.
        save_steps: steps between two checkpoints.
        stop_after: stop with a checkpoint after so many steps of this call.
        resume: go on from the newest checkpoint, if there is one.

    Returns:
        Whether the course is complete, and the trained model written.

    Raises:
        LlavaStfError: the folder holds a run and `resume` is not given, or cannot be written.
        DataError: the loss is not finite.
    """
    checkpoint = prepare_output(output, resume=resume)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    model = new_language_model(config(tokenizer))
    groups = parameter_groups(model, {"language_model": 0.0}, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    progress = Progress()
    if checkpoint is not None:
        state = read_state(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
    model.train()
    first, since = progress.step, time.monotonic()
    while progress.lesson < len(course) and (stop_after is None or progress.step < first + stop_after):
        lesson = course[progress.lesson]
        batch = collate(draw_exercises(course, progress, seed), tokenizer)
        rate = learning_rate(lesson, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, right = train_step(model, optimizer, batch, dtype)
        if not math.isfinite(loss):
            raise DataError(f"the loss is {loss} at step {progress.step + 1}; {describe_newest(output)}")
        progress.advance(lesson, batch["lessons"].tolist(), right.tolist())
        if progress.step % LOGGING_STEPS == 0:
            speed = (progress.step - first) / (time.monotonic() - since)
            shares = " ".join(f"{progress.share_right(number):.2f}" for number in range(len(progress.recent)))
            logger.info("step %d  loss %.3f  right per lesson %s  %.2f steps/s", progress.step, loss, shares, speed)
        if progress.step % save_steps == 0:
            save_state(output, progress.step, _state(model, optimizer, progress))
    if progress.step % save_steps and progress.step > first:
        save_state(output, progress.step, _state(model, optimizer, progress))
    if progress.lesson < len(course):
        return False
    logger.info(
        "right on %d scenes never told before: %s", SCENES, told_accuracy(model.eval(), tokenizer, SCENES, dtype=dtype)
    )
    save_model(model, tokenizer, output, torch.float32)
    return True


def collate(exercises: Sequence[tuple[Exercise, int]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """One batch of exercises, each with the number of its lesson.

    Returns:
        `input_ids` and `attention_mask` [B, L], padded on the right; `answers` [B, L], the number of the answer that a
        token belongs to, over the whole batch, or -100; `lessons` [answers], int64.
    """
    encoded = tokenizer(
        [exercise.text for exercise, _ in exercises], return_offsets_mapping=True, padding=True, padding_side="right"
    )
    ids = torch.tensor(encoded["input_ids"])
    answers = torch.full_like(ids, IGNORE_INDEX)
    lessons: list[int] = []
    for row, (exercise, lesson) in enumerate(exercises):
        offsets = np.array(encoded["offset_mapping"][row])
        for start, end in exercise.answers:
            inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            answers[row, torch.from_numpy(inside)] = len(lessons)
            lessons.append(lesson)
    mask = torch.tensor(encoded["attention_mask"])
    return {"input_ids": ids, "attention_mask": mask, "answers": answers, "lessons": torch.tensor(lessons)}


def train_step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[float, Tensor]:
    """One update; the mean loss of the answers' tokens, and which answers were right before it, bool [answers]."""
    loss, right = answer_loss(model.model, model.lm_head, batch, dtype)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), right


def answer_loss(
    model: LlamaModel, head: nn.Linear, batch: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """Cross entropy over the answers' tokens, and which answers have all of them right, bool [answers].

    Answers are one token of twelve, so only their logits are computed. Rows are padded on the right, where a causal
    model needs no mask.
    """
    count, length = batch["input_ids"].shape
    ids, number = batch["input_ids"].flatten(), batch["answers"].flatten()
    kept = batch["attention_mask"].flatten().bool()
    rows = Rows(model.config, count, 0, [(1, length)], kept, dtype)
    states = last_states(model, embed(model, ids, dtype), rows)
    (learned,) = torch.nonzero(number != IGNORE_INDEX, as_tuple=True)
    logits, target, number = logits_of(model, head, states[learned - 1]), ids[learned], number[learned]
    wrong = torch.zeros(len(batch["lessons"]), dtype=torch.int64)
    wrong.index_add_(0, number, (logits.argmax(-1) != target).long())
    return F.cross_entropy(logits, target), wrong == 0


@torch.inference_mode()
def told_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    scenes: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, float]:
    """Share of right answers per family about the captions of the first scenes of a held-out seed.

    Each question is asked in a conversation of its own, as `llava_stf_eval.drawn` asks with an image.
    """
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for index in range(scenes):
        scene = sample_scene(generator("held_out", seed, index, 0))
        questions = questions_of(scene, index, seed=seed, split="held_out")
        if not questions:
            continue
        batch = collate([(conversation(scene, [question]), 0) for question in questions], tokenizer)
        for question, is_right in zip(
            questions, answer_loss(model.model, model.lm_head, batch, dtype)[1].tolist(), strict=True
        ):
            right[question.family] += is_right
            total[question.family] += 1
    return {family: round(right[family] / total[family], 4) for family in FAMILIES if total[family]}


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress.state()}


def main() -> None:
    """Train the language model that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, model and tokenizer")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the computation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--stop-after", type=int, help="stop with a checkpoint after so many steps")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = vars(parser.parse_args())
    pretrain_language(**options | {"dtype": DTYPES[options["dtype"]]})


if __name__ == "__main__":
    main()
