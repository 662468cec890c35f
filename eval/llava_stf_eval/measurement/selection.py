"""What choosing the tokens costs, method by method, at the sizes of LLaVA-1.5-7B: docs/reduction.md.

    python -m llava_stf_eval.measurement.selection [--count 144] [--repeats 20] [--output selection.json]

One image of 576 patches, states of width 1,024 and projected tokens of width 4,096, random and float32, on one thread.
Timed is the choice alone, behind attention and before anything is gathered; it is the processor's time, so that other
programs on the machine count little. Beside DivPrune's greedy choice and VisionZip's merging stands a restatement of
their formulas in plain loops, one token and one row at a time, which must choose and merge the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llava_stf.errors import LlavaStfError
from llava_stf.io.arguments import count
from llava_stf.io.command import run
from llava_stf.io.publish import refuse_unwritable, write_json
from llava_stf.reduction.dart import least_alike
from llava_stf.reduction.divprune import farthest_first, most_diverse
from llava_stf.reduction.holov import HoloV
from llava_stf.reduction.layer_tokens import best
from llava_stf.reduction.prumerge import PruMergePlus
from llava_stf.reduction.sparsevlm import cluster_means, recycled
from llava_stf.reduction.tome import bipartite_matching, merge_tokens
from llava_stf.reduction.visionzip import VisionZip, contextual_count
from llava_stf.reduction.vispruner import VisPruner

PATCHES, WIDTH, LLM_WIDTH, TEXT = 576, 1024, 4096, 64
FEWEST = 4  # VisionZip and DART keep no fewer


def looped_divprune(distance: Tensor, nearest: Tensor, count: int) -> list[int]:
    """The greedy max-min choice by distances [N, N]: at every step the nearest of the chosen for every token."""
    chosen = [int(nearest.argmax())]
    while len(chosen) < count:
        gap = distance[chosen].amin(0)
        gap[chosen] = -torch.inf
        chosen.append(int(gap.argmax()))
    return chosen


def looped_visionzip(state: Tensor, attention: Tensor, keys: Tensor, count: int) -> Tensor:
    """Class token, dominant and contextual tokens of one image, row by row: [count, C] of state [1 + N, C]."""
    contextual = contextual_count(count)
    x, unit = state[1:], functional.normalize(keys, dim=-1)
    dominant = sorted(attention.topk(count - contextual - 1).indices.tolist())
    chosen = set(dominant)
    rest = [row for row in range(len(x)) if row not in chosen]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    assigned: dict[int, list[int]] = {target: [] for target in targets}
    for row in rest:
        if row not in assigned:
            assigned[max(targets, key=lambda target: float(unit[row] @ unit[target]))].append(row)
    merged = [x[target] + (x[rows].mean(0) if rows else 0) for target, rows in assigned.items()]
    return torch.stack([state[0], *x[dominant], *merged])


def selections(count: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]]:
    """By method, what chooses `count` tokens of one image, and a looped restatement where there is one."""
    torch.manual_seed(0)
    state, keys = torch.randn(1, 1 + PATCHES, WIDTH), torch.randn(1, PATCHES, WIDTH)
    tokens = torch.randn(1, PATCHES, LLM_WIDTH)
    attention = torch.rand(1, PATCHES).softmax(-1)
    head_keys = torch.randn(1, 1 + PATCHES, 64)  # mean over heads, as ToMe takes them
    candidates = recycled(PATCHES - count)
    size = torch.ones(1, 1 + PATCHES)

    def tome() -> Tensor:
        return merge_tokens(state, size, *bipartite_matching(head_keys, (PATCHES - count) // 23))[0]

    unit = functional.normalize(tokens, dim=-1)
    distance = 1 - unit @ unit.transpose(1, 2)
    diagonal = distance.diagonal(dim1=1, dim2=2)
    diagonal.fill_(torch.inf)
    nearest = distance.amin(-1)
    diagonal.fill_(-torch.inf)
    pivots = list(range(0, 64, 8))
    others = [column for column in range(PATCHES) if column not in pivots]
    return {
        "DivPrune": (lambda: most_diverse(tokens, count), None),
        "DivPrune, behind the distances": (
            lambda: farthest_first(distance, nearest, count),
            lambda: looped_divprune(distance[0], nearest[0], count),
        ),
        "VisionZip": (
            lambda: VisionZip().zip_tokens(state, attention, keys, count),
            lambda: looped_visionzip(state[0], attention[0], keys[0], count),
        ),
        "ToMe, one of 23 merges": (tome, None),
        "PruMerge+": (lambda: PruMergePlus().merge(state[:, 1:], attention, keys, count), None),
        "HoloV": (lambda: HoloV().choose(tokens, attention, count), None),
        "VisPruner": (lambda: VisPruner().choose(state[:, 1:], attention, count), None),
        "FastV, PyramidDrop": (lambda: best(attention, count), None),
        "DART": (lambda: least_alike(tokens[0], pivots, others, count - 4), None),
        "SparseVLM, one of three steps": (
            lambda: (best(attention, count), cluster_means(tokens[:, : candidates[0]], candidates[1])),
            None,
        ),
    }


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median of the processor's time."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    """Time every selection and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=count, default=144, help="tokens that are kept, 4 to 576")
    parser.add_argument("--repeats", type=count, default=20)
    parser.add_argument("--output", type=Path, help="also write the milliseconds to this JSON file")
    options = parser.parse_args()
    if not FEWEST <= options.count <= PATCHES:
        raise LlavaStfError(f"All methods choose from {FEWEST} to {PATCHES} tokens, found --count {options.count}.")
    if options.output:
        refuse_unwritable(options.output.parent)
    torch.set_num_threads(1)
    runs = selections(options.count)
    ours, loops = runs["DivPrune, behind the distances"]
    assert loops is not None
    assert ours()[0].tolist() == loops()
    assert runs["DivPrune"][0]()[0].tolist() == sorted(loops())
    ours, loops = runs["VisionZip"]
    assert loops is not None
    torch.testing.assert_close(ours()[0], loops(), rtol=1e-4, atol=1e-4)
    found = {}
    print("| | chooses in, ms | in plain loops, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for name, (ours, loops) in runs.items():
        taken = 1000 * seconds(ours, options.repeats)
        looped = 1000 * seconds(loops, options.repeats) if loops else None
        found[name] = {"milliseconds": taken, "looped_milliseconds": looped}
        cells = f"{looped:.1f} | {looped / taken:.1f}x" if looped else " | "
        print(f"| {name} | {taken:.1f} | {cells} |")
    if options.output:
        write_json(options.output, found)


if __name__ == "__main__":
    run(main)
