"""The order of samples: of an epoch, and in instruction tuning optimizer steps of one modality and similar lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Numbers of the samples of one epoch, in an order that depends on seed and epoch alone.

    The epoch is filled up with its own first samples to whole optimizer steps, so that every step has equally many
    samples, the same ones on any number of processes. It is known by `steps_done()`, the optimizer steps before it.
    With `lengths` a step has samples of one modality and of similar lengths, see `grouped_order`.
    """

    def __init__(
        self,
        samples: int,
        samples_per_step: int,
        seed: int,
        steps_done: Callable[[], int],
        *,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.samples, self.seed, self.steps_done, self.lengths = samples, seed, steps_done, lengths
        self.steps = math.ceil(samples / samples_per_step)
        self.samples_per_step = samples_per_step

    def __len__(self) -> int:
        return self.steps * self.samples_per_step

    def __iter__(self) -> Iterator[int]:
        epoch = self.steps_done() // self.steps
        rng = np.random.default_rng((self.seed, epoch))
        if self.lengths is None:
            order = rng.permutation(self.samples)
        else:
            order = grouped_order(self.lengths, self.samples_per_step, rng)
        yield from np.resize(order, len(self)).tolist()


def grouped_order(lengths: np.ndarray, megabatch: int, rng: np.random.Generator) -> np.ndarray:
    """The numbers of all samples, int64 [n], in megabatches, each of them one optimizer step of all processes.

    Samples with and without images are shuffled and cut into megabatches apart, each is sorted by length, longest
    first, and the megabatches are shuffled. What is left of the two modalities comes last, joined and sorted. So no
    forward pass mixes modalities (but for those last ones), padding is short, and processes that take turns in a
    megabatch have equal work.

    Args:
        lengths: signed lengths, int [n]: not negative with an image, negative without.
        megabatch: world size x accumulation x per-device batch.
        rng: decides the order.
    """

    def longest_first(numbers: np.ndarray) -> np.ndarray:
        return numbers[np.argsort(-np.abs(lengths[numbers]), kind="stable")]

    megabatches, rest = [], []
    for modality in (lengths >= 0, lengths < 0):
        numbers = rng.permutation(np.flatnonzero(modality))
        whole = len(numbers) // megabatch * megabatch
        megabatches += list(numbers[:whole].reshape(-1, megabatch))
        rest.append(numbers[whole:])
    shuffled = [megabatches[place] for place in rng.permutation(len(megabatches))]
    return np.concatenate([longest_first(numbers) for numbers in [*shuffled, np.concatenate(rest)]])
