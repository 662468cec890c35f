"""Several token budgets in one training run: which one an optimizer step has, and batches brought to it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llava_stf.models.llava_stf.conversation import IGNORE_INDEX

Schedule = Literal["random", "descending"]


def budget_of_step(counts: list[int], schedule: Schedule, step: int, steps: int, seed: int) -> int:
    """Vision tokens per image in one optimizer step; depends on nothing but the arguments.

    Args:
        counts: the run's budgets, in any order.
        schedule: `"random"` draws one of them; `"descending"` gives each an equal share of the run, most tokens first.
        step: optimizer steps before this one.
        steps: of the whole run.
        seed: of the draw.
    """
    if schedule == "random":
        return counts[np.random.default_rng((seed, step)).integers(len(counts))]
    return sorted(counts, reverse=True)[min(step * len(counts) // steps, len(counts) - 1)]


def with_budget(batch: dict[str, Any], found: int, wanted: int, image_token_id: int) -> dict[str, Any]:
    """A batch whose images take `wanted` placeholders each in place of `found`, right-padded again.

    `input_ids`, `labels` and `attention_mask` [B, L] become [B, longest]; everything else stays. The tokens of the
    answers keep their number and order.
    """
    if found == wanted:
        return batch
    places = batch["input_ids"] == image_token_id
    # Images may stand next to each other, so their placeholders are told apart by counting.
    first = places & ((places.cumsum(-1) - 1) % found == 0)
    repeats = torch.where(first, wanted, (~places).long())
    longest = int((repeats * batch["attention_mask"]).sum(-1).max())

    def resized(tensor: Tensor, padding: int) -> Tensor:
        rows = [row.repeat_interleave(count)[:longest] for row, count in zip(tensor, repeats, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)

    return {
        **batch,
        "input_ids": resized(batch["input_ids"], 0),
        "labels": resized(batch["labels"], IGNORE_INDEX),
        "attention_mask": resized(batch["attention_mask"], 0),
    }
