"""What the joined products share on the device: how a tile finds its rows, its source and its place."""

import triton
import triton.language as tl

from ..dispatch import is_interpreting

# The interpreter multiplies bfloat16 tiles as the integers that it stores them in; it is given float32 ones.
INTERPRETED = tl.constexpr(is_interpreting())


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """total + a b, in float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def pick(pointers, index):
    """The pointer at a place that is known at run time only."""
    picked = pointers[0]
    for i in tl.static_range(1, len(pointers)):
        picked = tl.where(index == i, pointers[i], picked)
    return picked


@triton.jit
def source_pointer(tensors, source, first, jump_r, jump_q, WINDOW: tl.constexpr):
    """Where a source begins: in a tensor of its own, or at its place in the windows of the only one."""
    if len(tensors) > 1:
        return pick(tensors, source) + first
    return tensors[0] + first + (source // WINDOW) * jump_r + (source % WINDOW) * jump_q


@triton.jit
def row_offsets(o_m, rows_r, rows_q, stride_b, stride_r, stride_q):
    """Where rows [b, r, q] of a source begin, in elements."""
    row = o_m // rows_q
    return (row // rows_r).to(tl.int64) * stride_b + (row % rows_r) * stride_r + (o_m % rows_q) * stride_q


@triton.jit
def tile(i, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Program index to tile, GROUP rows of tiles at a time, so that tiles in flight share their operands in the L2."""
    first = i // (GROUP * tiles_n) * GROUP
    group = min(tiles_m - first, GROUP)
    inside = i % (GROUP * tiles_n)
    return first + inside % group, inside // group
