"""One matrix product over an input that is spread over several tensors or strided views, which are never joined.

    y[m, :] = GELU(sum_s A_s[m, :] W_s^T + bias)        s = 1..S sources

The K loop walks through the channels of one source after the other, so the address of the A tile is a source's base
plus an offset per row, and the weight [O, S*C] is read as it lies. `fuse_blocks` passes a source per tower state,
`fuse_windows` one per place in a window.

The backward pass computes the product once more and writes dZ = dY * GELU'(Z) in its epilogue: nothing but the inputs
is kept between the passes. The gradients of weight and sources are two more products on dZ.

Names: M rows (B * R * Q), O outputs, C channels of a source; `i_` program indices, `o_` offsets, `p_` pointers, `b_`
tiles.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import is_interpreting


def _config(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)


# Shared memory holds `stages` pairs of tiles (227 KiB on sm_90 and sm_100, 163 on sm_80; what does not fit is passed
# over). 16-bit tiles go to the tensor cores; float32 ones through multiply-adds on registers, and must be small.
HALF_CONFIGS = [
    _config(128, 256, 64, 8, 3),
    _config(128, 256, 64, 8, 4),
    _config(128, 128, 64, 8, 3),
    _config(128, 128, 64, 8, 4),
    _config(64, 256, 64, 8, 3),
    _config(64, 128, 64, 4, 4),
    _config(64, 64, 64, 4, 4),
]
HALF_GRADIENT_CONFIGS = [
    _config(128, 256, 64, 8, 3),
    _config(128, 128, 64, 8, 3),
    _config(128, 64, 64, 8, 3),
    _config(64, 64, 64, 4, 4),
]
FLOAT_CONFIGS = [_config(64, 64, 32, 8, 3), _config(32, 64, 16, 4, 3)]
INTERPRETED_CONFIGS = [_config(32, 32, 32, 4, 1)]


def configs_for(half_configs: list[triton.Config], element_size: int, backward: bool = False) -> list[triton.Config]:
    """Tiles to try for elements of that many bytes; the slope of GELU leaves no registers for the widest ones."""
    configs = half_configs if element_size == 2 else FLOAT_CONFIGS
    return [config for config in configs if not backward or config.kwargs["BLOCK_N"] <= 128]


def tuned(half_configs: list[triton.Config], **heuristics: Callable[[dict], bool]) -> Callable[[Any], Any]:
    """Tiles measured on the user's device at the first call of a size, kept on disk; rows count by powers of two."""

    def prune(configs: list[triton.Config], arguments: dict, **kwargs: Any) -> list[triton.Config]:
        element_size = next(value for value in kwargs.values() if isinstance(value, Tensor)).element_size()
        return configs_for(half_configs, element_size, kwargs.get("BACKWARD", False))

    def decorate(kernel: Any) -> Any:
        kernel = triton.heuristics(heuristics)(kernel)
        if is_interpreting():
            return triton.autotune(INTERPRETED_CONFIGS, key=[])(kernel)
        key = ["rows_bucket", "outputs", "channels", *({"BACKWARD"} & set(kernel.arg_names))]
        return triton.autotune(
            half_configs + FLOAT_CONFIGS, key=key, prune_configs_by={"early_config_prune": prune}, cache_results=True
        )(kernel)

    return decorate


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


@triton.jit
def _gelu(z):
    return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _gelu_slope(z):
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)


@triton.jit
def finish(z, bias, grad, out, o_m, o_n, rows, outputs, HAS_BIAS: tl.constexpr, BACKWARD: tl.constexpr):
    """Bias, GELU or its slope, and the store of a tile z of rows o_m and outputs o_n."""
    inside = (o_m < rows)[:, None] & (o_n < outputs)[None, :]
    o_out = o_m.to(tl.int64)[:, None] * outputs + o_n[None, :]
    if HAS_BIAS:
        z += tl.load(bias + o_n, mask=o_n < outputs, other=0.0).to(tl.float32)[None, :]
    if BACKWARD:
        z = tl.load(grad + o_out, mask=inside, other=0.0).to(tl.float32) * _gelu_slope(z)
        tl.store(out + o_out, z, mask=inside)
    else:
        tl.store(out + o_out, _gelu(z), mask=inside)


@tuned(HALF_CONFIGS, EVEN_CHANNELS=lambda args: args["channels"] % args["BLOCK_K"] == 0)
@triton.jit
def product_kernel(
    sources,
    weight,
    bias,
    grad,
    out,
    rows,
    rows_bucket,
    rows_r,
    rows_q,
    channels,
    outputs,
    stride_b,
    stride_r,
    stride_q,
    HAS_BIAS: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
):
    """out [M, O] = GELU(Z), or grad * GELU'(Z) where BACKWARD; Z = sum A_s W_s^T + bias. EVEN_CHANNELS: BLOCK_K | C."""
    i_m, i_n = tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(outputs, BLOCK_N), 8)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    # Rows and outputs beyond the end read the first one instead, and are not stored: no mask in the loop.
    row = row_offsets(tl.where(o_m < rows, o_m, 0), rows_r, rows_q, stride_b, stride_r, stride_q)
    column = tl.where(o_n < outputs, o_n, 0).to(tl.int64) * (channels * len(sources))
    o_a = row[:, None] + o_k[None, :]  # [BM, BK]
    o_w = column[:, None] + o_k[None, :]  # [BN, BK]

    z = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    source, channel = 0, 0
    for _ in range(len(sources) * tl.cdiv(channels, BLOCK_K)):
        p_a = pick(sources, source) + channel + o_a
        p_w = weight + (source * channels + channel) + o_w
        if EVEN_CHANNELS:
            b_a, b_w = tl.load(p_a), tl.load(p_w)
        else:
            inside = (o_k < channels - channel)[None, :]
            b_a, b_w = tl.load(p_a, mask=inside, other=0.0), tl.load(p_w, mask=inside, other=0.0)
        z = add_product(z, b_a, b_w.T, PRECISION)
        channel += BLOCK_K
        done = channel >= channels
        source = tl.where(done, source + 1, source)
        channel = tl.where(done, 0, channel)

    if BLOCK_N > 128:
        # By halves: the epilogue of a whole wide tile does not fit into the registers beside its accumulator.
        left, right = z.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
        o_half = i_n * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        finish(left, bias, grad, out, o_m, o_half, rows, outputs, HAS_BIAS, BACKWARD)
        finish(right, bias, grad, out, o_m, o_half + BLOCK_N // 2, rows, outputs, HAS_BIAS, BACKWARD)
    else:
        finish(z, bias, grad, out, o_m, o_n, rows, outputs, HAS_BIAS, BACKWARD)


def joined_linear(sources: Sequence[Tensor], weight: Tensor, bias: Tensor | None, grad: Tensor | None = None) -> Tensor:
    """GELU(sum_s A_s W_s^T + bias) [B, R, Q, O], or, given `grad` of that shape, grad * GELU'(...).

    Args:
        sources: S tensors or views [B, R, Q, C], alike in shape and strides, channels contiguous.
        weight: [O, S*C], contiguous.
        bias: [O] or `None`.
    """
    outputs = weight.shape[0]
    out = torch.empty(*sources[0].shape[:3], outputs, dtype=weight.dtype, device=weight.device)
    shape = source_shape(sources[0])
    product_kernel[lambda args: (tiles(shape["rows"], args["BLOCK_M"]) * tiles(outputs, args["BLOCK_N"]),)](
        sources=tuple(sources),
        weight=weight,
        bias=bias,
        grad=grad,
        out=out,
        outputs=outputs,
        **shape,
        HAS_BIAS=bias is not None,
        BACKWARD=grad is not None,
        PRECISION=precision(),
    )
    return out


def source_shape(source: Tensor) -> dict[str, Any]:
    """What the kernels take of a source's shape and strides."""
    batch, rows_r, rows_q, channels = source.shape
    rows = batch * rows_r * rows_q
    stride_b, stride_r, stride_q, _ = source.stride()
    return {
        "rows": rows,
        "rows_bucket": triton.next_power_of_2(rows),
        "rows_r": rows_r,
        "rows_q": rows_q,
        "channels": channels,
        "stride_b": stride_b,
        "stride_r": stride_r,
        "stride_q": stride_q,
    }


def tiles(size: int, block: int) -> int:
    return -(-size // block)


def precision() -> str:
    """How float32 tiles are multiplied: exactly, or in tf32 where torch's own products may be."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
