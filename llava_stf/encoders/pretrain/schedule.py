"""Learning rate, weight decay and data order of a pre-training run, as functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


def cosine(step: int, *, base: float, final: float, steps: int, warmup_steps: int = 0) -> float:
    """The value at `step` of `steps` (docs/encoders/methods.md, Schedules).

    It rises linearly from 0 to `base` over the warm-up, its end included; then a cosine leads to `final`.
    """
    if step < warmup_steps:
        return base * step / max(warmup_steps - 1, 1)
    share = (step - warmup_steps) / (steps - warmup_steps)
    return final + (base - final) * (1 + math.cos(math.pi * share)) / 2


def cosine_by_epoch(epoch: int, *, base: float, epochs: int, warmup_epochs: int) -> float:
    """APS's learning rate of an epoch, counted from 0: the lesser of warm-up and cosine to 0.

    See docs/encoders/methods.md, APS, Settings.
    """
    rise = (epoch + 1) / (warmup_epochs + 1e-8)
    return base * min(rise, (1 + math.cos(math.pi * epoch / epochs)) / 2)


class Batches:
    """The numbers of the images in every forward pass of one process, from step `start` on, int lists of `batch`.

    The order of an epoch follows from seed and epoch, so a resumed run goes on where it stopped. A step takes
    `accumulation` x `processes` x `batch` images; what an epoch leaves over is not used.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        *,
        epochs: int,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
        seed: int = 0,
        start: int = 0,
    ) -> None:
        self.count, self.batch, self.accumulation = count, batch, accumulation
        self.rank, self.processes, self.seed, self.start = rank, processes, seed, start
        self.step_size = accumulation * processes * batch
        self.steps_per_epoch = count // self.step_size
        self.steps = epochs * self.steps_per_epoch

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        epoch = -1
        for step in range(self.start, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            first = step % self.steps_per_epoch * self.step_size
            for part in range(self.accumulation):
                place = first + (part * self.processes + self.rank) * self.batch
                yield order[place : place + self.batch].tolist()
