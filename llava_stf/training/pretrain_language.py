"""Train the bundled model's language model on text alone, with a captioned scene where the image will be.

It plays the part that Vicuna plays for LLaVA: afterwards the language model answers all families of questions, options
by letter among them, from what it is told. The lessons of `COURSE` follow each other; each ends when its newest
exercises are answered well enough, and most of the earlier ones are rehearsed in those that follow.

    python -m llava_stf.training.pretrain_language --output runs/language --resume
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from llava_stf.errors import DataError
from llava_stf.io.runs import PARTIAL, describe_newest, prepare_output, publish_checkpoint, save_model
from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.training.assemble_tiny import ROWS_MULTIPLE, train_tokenizer
from llava_stf.world.exercises import Exercise, letter_drill, lettered_fact, options_last, told

logger = logging.getLogger(__name__)
STATE = "state.pt"
WARMUP_STEPS = 50


@dataclass(frozen=True)
class Lesson:
    """Exercises of one kind, for at most `steps` steps.

    `goal` is the share of right answers in the last `WINDOW` that ends the lesson early, `share` the part of a batch
    that is of this lesson and not of earlier ones. With `fades` the learning rate falls to zero over the steps.
    Exercises that are not `rehearsed` do not come again: they are a step on the way, and the next lesson asks the same
    and wants another answer.
    """

    name: str
    draw: Callable[[np.random.Generator], Exercise]
    steps: int
    goal: float = 0.85
    learning_rate: float = 1e-3
    batch_size: int = 16
    share: float = 0.6
    rehearsed: bool = True
    fades: bool = False


WINDOW = 600
COURSE = (
    Lesson("word", partial(letter_drill, form="word"), 1500),
    Lesson("question", partial(letter_drill, form="question"), 1000),
    Lesson("sentence", partial(letter_drill, form="sentence"), 1000),
    Lesson("turn", partial(letter_drill, form="turn"), 1000),
    Lesson("spoken", partial(options_last, spoken=True), 1500, rehearsed=False),
    Lesson("options last", options_last, 2000),
    Lesson("one fact", lettered_fact, 3000),
    Lesson("two facts", partial(lettered_fact, max_objects=2), 3000),
    Lesson("told", told, 6000, goal=1.01, batch_size=8, share=1.0, fades=True),
)


@dataclass
class Progress:
    """Where a run stands: everything beside weights and optimizer that decides what comes next."""

    step: int = 0
    lesson: int = 0
    step_in_lesson: int = 0
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))  # of the newest exercises' answers: right?

    @property
    def share_right(self) -> float:
        return sum(self.recent) / max(1, len(self.recent))

    def advance(self, lesson: Lesson) -> None:
        """Count one step, and go on to the next lesson where this one is over."""
        self.step += 1
        self.step_in_lesson += 1
        learned = len(self.recent) == WINDOW and self.share_right >= lesson.goal
        if learned or self.step_in_lesson >= lesson.steps:
            logger.info("%s: %.3f right after %d steps", lesson.name, self.share_right, self.step_in_lesson)
            self.lesson, self.step_in_lesson = self.lesson + 1, 0
            self.recent.clear()


def language_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The bundled model's language model: a LLaMA of 4 layers of width 192.

    Matrices start at a standard deviation of 1 / sqrt(width): with the usual 0.02 attention is so even at this width
    that nothing tells it where to look.
    """
    return LlamaConfig(
        vocab_size=-(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        initializer_range=192**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def pretrain_language(
    output: Path,
    *,
    course: Sequence[Lesson] = COURSE,
    config: Callable[[PreTrainedTokenizerBase], LlamaConfig] = language_config,
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
    # On a CPU in bfloat16 eager attention is the faster one.
    model = LlamaForCausalLM._from_config(config(tokenizer), attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    progress = Progress()
    if checkpoint is not None:
        state = torch.load(checkpoint / STATE, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        progress = state["progress"]
    model.train()
    first, since = progress.step, time.monotonic()
    while progress.lesson < len(course) and (stop_after is None or progress.step < first + stop_after):
        lesson = course[progress.lesson]
        batch = collate(_draw(course, progress, seed), tokenizer)
        rate = _learning_rate(lesson, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, right = train_step(model, optimizer, batch)
        if not math.isfinite(loss):
            raise DataError(f"the loss is {loss} at step {progress.step + 1}; {describe_newest(output)}")
        progress.recent.extend(right[batch["newest"]].tolist())
        if (progress.step + 1) % 50 == 0:
            speed = (progress.step + 1 - first) / (time.monotonic() - since)
            logger.info(
                "step %d  %s  loss %.3f  right %.3f  %.2f steps/s",
                progress.step + 1, lesson.name, loss, progress.share_right, speed,
            )  # fmt: skip
        progress.advance(lesson)
        if progress.step % save_steps == 0:
            _save(output, model, optimizer, progress)
    if progress.step % save_steps and progress.step > first:
        _save(output, model, optimizer, progress)
    if progress.lesson < len(course):
        return False
    save_model(model, tokenizer, output, torch.float32)
    return True


def collate(exercises: Sequence[tuple[Exercise, bool]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """One batch of exercises, each with whether it belongs to the newest lesson.

    Returns:
        `input_ids` [B, L], padded on the right; `answers` [B, L], the number of the answer that a token belongs to,
        over the whole batch, or -100; `newest` [answers], bool.
    """
    encoded = tokenizer(
        [exercise.text for exercise, _ in exercises], return_offsets_mapping=True, padding=True, padding_side="right"
    )
    ids = torch.tensor(encoded["input_ids"])
    answers = torch.full_like(ids, IGNORE_INDEX)
    newest: list[bool] = []
    for row, (exercise, is_newest) in enumerate(exercises):
        offsets = np.array(encoded["offset_mapping"][row])
        for start, end in exercise.answers:
            inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            answers[row, torch.from_numpy(inside)] = len(newest)
            newest.append(is_newest)
    return {"input_ids": ids, "answers": answers, "newest": torch.tensor(newest)}


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    """One update; the mean loss of the answers' tokens, and which answers were right before it, bool [answers]."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    loss, right = answer_loss(logits.float(), batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), right


def answer_loss(logits: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy over the answers' tokens, and which answers have all of them right; logits [B, L - 1, V]."""
    number, target = batch["answers"][:, 1:], batch["input_ids"][:, 1:]
    learned = number != IGNORE_INDEX
    picked, target, number = logits[learned], target[learned], number[learned]
    wrong = torch.zeros(len(batch["newest"]), dtype=torch.int64)
    wrong.index_add_(0, number, (picked.argmax(-1) != target).long())
    return F.cross_entropy(picked, target), wrong == 0


def _draw(course: Sequence[Lesson], progress: Progress, seed: int) -> list[tuple[Exercise, bool]]:
    """The exercises of a step: a function of seed, step and lesson alone."""
    rng = np.random.default_rng([seed, progress.step])
    newest = course[progress.lesson]
    earlier = [lesson for lesson in course[: progress.lesson] if lesson.rehearsed]
    chosen = [
        newest if not earlier or rng.random() < newest.share else earlier[int(rng.integers(len(earlier)))]
        for _ in range(newest.batch_size)
    ]
    return [(lesson.draw(rng), lesson is newest) for lesson in chosen]


def _learning_rate(lesson: Lesson, progress: Progress) -> float:
    warmup = min(1.0, (progress.step + 1) / WARMUP_STEPS)
    left = 1 - progress.step_in_lesson / lesson.steps if lesson.fades else 1.0
    return lesson.learning_rate * warmup * left


def _save(output: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    name = f"checkpoint-{progress.step}"
    folder = output / PARTIAL / name
    folder.mkdir(parents=True)
    state: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress}
    torch.save(state, folder / STATE)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": progress.step}))
    publish_checkpoint(output, name, keep=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, model and tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--stop-after", type=int, help="stop with a checkpoint after so many steps")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pretrain_language(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
