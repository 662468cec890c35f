"""The order of samples in instruction tuning: optimizer steps of one modality and of similar lengths."""

from __future__ import annotations

import numpy as np


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
