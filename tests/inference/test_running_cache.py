"""Rows that come and go keep their own keys and values, whatever becomes of the others."""

import random

import pytest
import torch
from torch import Tensor

from llava_stf.inference.running_cache import SPARE, RunningCache

LAYERS, HEADS, WIDTH = 2, 3, 4


def states(tokens: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(HEADS, tokens, WIDTH), torch.randn(HEADS, tokens, WIDTH)) for _ in range(LAYERS)]


def step(cache: RunningCache, rows: list[list[tuple[Tensor, Tensor]]]) -> list[list[tuple[Tensor, Tensor]]]:
    """Another token of each row, as a model's layers write it; the rows with it."""
    mask, positions = cache.next_column()
    assert positions[:, 0].tolist() == [row[0][0].shape[1] for row in rows]
    assert mask.sum(-1).tolist() == [length + 1 for length in positions[:, 0].tolist()]
    new = [states(1) for _ in rows]
    for layer in range(LAYERS):
        assert cache.get_seq_length(layer) == mask.shape[1] - 1
        keys, values = cache.update(*(torch.stack([row[layer][kind] for row in new]) for kind in (0, 1)), layer)
        assert keys.shape == values.shape == (len(rows), HEADS, mask.shape[1], WIDTH)
        assert keys.isfinite().all()
        assert values.isfinite().all()
    return [
        [tuple(torch.cat(pair, dim=1) for pair in zip(*both, strict=True)) for both in zip(row, more, strict=True)]
        for row, more in zip(rows, new, strict=True)
    ]


def test_rows_of_any_length_come_and_go() -> None:
    rng, cache, rows = random.Random(0), RunningCache(), []
    torch.manual_seed(0)
    for _ in range(600):
        what = rng.choice(("join", "leave", "step", "step", "step"))
        if what == "join" and len(rows) < 9:
            rows.append(states(rng.choice((1, 5, 40, 150))))
            cache.join(rows[-1])
        elif what == "leave" and rows:
            gone = rng.randrange(len(rows))
            cache.leave(gone)
            rows[gone] = rows[-1]
            rows.pop()
        elif rows:
            rows = step(cache, rows)
        assert cache.lengths == [row[0][0].shape[1] for row in rows]
        for number, row in enumerate(rows):
            for mine, own in zip(cache.states_of(number), row, strict=True):
                assert all(torch.equal(*pair) for pair in zip(mine, own, strict=True))


def test_room_follows_the_rows_and_is_given_back() -> None:
    cache, rows = RunningCache(), []
    for length in (9, 30, 4):
        rows.append(states(length))
        cache.join(rows[-1])
    for _ in range(5 * SPARE):
        rows = step(cache, rows)
    assert {buffer.shape[2] for layer in cache.layers for buffer in layer.buffers} <= set(
        range(30 + 5 * SPARE, 30 + 6 * SPARE + 1)
    )
    cache.leave(1)
    rows = [rows[0], rows[2]]
    for _ in range(SPARE + 1):
        rows = step(cache, rows)
    assert {buffer.shape[0] for layer in cache.layers for buffer in layer.buffers} == {2}
    cache.leave(0)
    cache.leave(0)
    assert not cache.layers


def test_what_is_no_number_stays_with_its_row() -> None:
    cache = RunningCache()
    cache.join([(torch.full((HEADS, 50, WIDTH), torch.nan),) * 2] * LAYERS)
    cache.join(states(50))
    cache.leave(0)
    rows = [[(layer[0], layer[1]) for layer in cache.states_of(0)], states(3)]
    cache.join(rows[1])
    step(cache, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_of_the_dtype_of_what_joins(dtype: torch.dtype) -> None:
    cache = RunningCache()
    cache.join([(keys.to(dtype), values.to(dtype)) for keys, values in states(2)])
    assert cache.states_of(0)[0][0].dtype == dtype
