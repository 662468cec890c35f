"""What the joined products share on the device: how a tile finds its place, its source and its rows."""

import triton
import triton.language as tl

from ..dispatch import is_interpreting

# The interpreter multiplies bfloat16 tiles as the integers that it stores them in; it is given float32 ones.
INTERPRETED = tl.constexpr(is_interpreting())


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """The sum total + a b, in float32."""
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
def row_offsets(o_m, patches, stride_b, stride_n):
    """Where rows [b, n] of a source begin, in elements."""
    return (o_m // patches).to(tl.int64) * stride_b + (o_m % patches) * stride_n


@triton.jit
def tile(i, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Program index to tile, GROUP rows of tiles at a time, so that tiles in flight share their operands in the L2."""
    first = i // (GROUP * tiles_n) * GROUP
    group = min(tiles_m - first, GROUP)
    inside = i % (GROUP * tiles_n)
    return first + inside % group, inside // group
