"""Several token budgets in one training run: which one an optimizer step has, and batches brought to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llava_stf.models.fusion.budget import tokens_in_window, window_of_tokens
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


def with_budget(model: Any, batch: dict[str, Any], found: int, wanted: int) -> dict[str, Any]:
    """A batch prepared at one budget, of an image or a tile, as it is at another; see `with_counts`.

    Args:
        model: a fused model, or with `found` and `wanted` alike any.
        batch: as `collate` makes it.
        found: the budget of its placeholders.
        wanted: the other.
    """
    if found == wanted or "pixel_values" not in batch:
        return batch
    inner, config = model.model, model.config
    choices = {name: batch.get(name) for name in inner.image_choices}
    sizes = inner.sizes_of_images(batch["pixel_values"], **choices)
    before, after = (tokens_in_window(config, sizes, window_of_tokens(config, budget)) for budget in (found, wanted))
    return with_counts(batch, before, after, config.image_token_id)


def with_counts(
    batch: dict[str, Any], found: Sequence[int], wanted: Sequence[int], image_token_id: int
) -> dict[str, Any]:
    """A batch whose images take `wanted` placeholders in place of `found`, right-padded again.

    `input_ids`, `labels` and `attention_mask` [B, L] become [B, longest]; everything else stays. The tokens of the
    answers keep their number and order.
    """
    places = batch["input_ids"] == image_token_id
    # Images may stand next to each other, so their placeholders are told apart by counting.
    before, after = (torch.tensor(counts, device=places.device) for counts in (found, wanted))
    repeats = (~places).long()
    first = places.flatten().nonzero()[:, 0][before.cumsum(0) - before]
    repeats.view(-1)[first] = after
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
