"""Optimizer steps in instruction tuning are of one modality and of similar lengths."""

import numpy as np
import pytest

from llava_stf.training.sampling import grouped_order

LENGTHS = np.concatenate(
    [np.random.default_rng(1).integers(5, 300, 83), -np.random.default_rng(2).integers(5, 300, 37)]
)


def order(seed, megabatch=8, lengths=LENGTHS):
    return grouped_order(lengths, megabatch, np.random.default_rng(seed))


@pytest.mark.parametrize("megabatch", [1, 8, 37, 1000])
def test_every_sample_comes_once(megabatch):
    assert sorted(order(0, megabatch)) == list(range(len(LENGTHS)))


def test_megabatches_have_one_modality_and_are_sorted_and_the_remainders_are_joined_at_the_end():
    signed = LENGTHS[order(0)]
    whole = 83 // 8 + 37 // 8
    for megabatch in signed[: whole * 8].reshape(whole, 8):
        assert len(set(megabatch >= 0)) == 1
        assert (np.diff(np.abs(megabatch)) <= 0).all()
    rest = signed[whole * 8 :]
    assert ((rest >= 0).sum(), (rest < 0).sum()) == (83 % 8, 37 % 8)
    assert (np.diff(np.abs(rest)) <= 0).all()


def test_megabatches_are_shuffled_by_the_seed():
    assert order(0).tolist() == order(0).tolist()
    assert order(0).tolist() != order(1).tolist()
    modalities = (LENGTHS[order(0)] >= 0)[: 14 * 8 : 8]
    assert len(set(modalities[:10])) == 2  # text alone does not come last
    assert {frozenset(step) for step in order(0)[:112].reshape(-1, 8).tolist()}.isdisjoint(
        frozenset(step) for step in order(1)[:112].reshape(-1, 8).tolist()
    )


def test_a_modality_that_fills_its_megabatches_leaves_no_mixed_one():
    signed = np.array([3] * 16 + [-2] * 8)
    steps = signed[order(0, 8, signed)].reshape(-1, 8)
    assert sorted(set(step) == {3} for step in steps.tolist()) == [False, True, True]
    assert all(len(set(step)) == 1 for step in steps.tolist())
