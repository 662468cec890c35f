"""One matrix product over an input that is spread over several tensors, which are never joined.

    y[m, :] = GELU(sum_s A_s[m, :] W_s^T + bias)        s = 1..S sources

The K loop walks through the channels of one source after the other, so the address of the A tile is a source's base
plus an offset per row, and the weight [O, S*C] is read as it lies. `fuse_blocks` passes a source per hidden state,
`fuse_windows` its gathered windows as the only one.

The backward pass computes the product once more and writes dZ = dY * GELU'(Z) in its epilogue: nothing but the inputs
is kept between the passes. The gradients of weight and sources are two more products on dZ.

Names: M rows (B * N), O outputs, C channels of a source; `i_` program indices, `o_` offsets, `p_` pointers, `b_` tiles.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import HALF_CONFIGS, WIDEST_K, launch, tuned
from .tiles import add_product, pick, row_offsets, tile


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


@triton.jit
def product_kernel(
    tensors,
    weight,
    bias,
    grad,
    out,
    rows,
    rows_bucket,
    patches,
    channels,
    outputs,
    stride_b,
    stride_n,
    SOURCES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BACKWARD: tl.constexpr,
    EVEN_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Output [M, O] = GELU(Z), or grad * GELU'(Z) where BACKWARD; Z = sum A_s W_s^T + bias. EVEN_CHANNELS: 64 | C."""
    i_m, i_n = tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(outputs, BLOCK_N), 8)
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    # Rows and outputs beyond the end read the first one instead, and are not stored: no mask in the loop.
    row = row_offsets(tl.where(o_m < rows, o_m, 0), patches, stride_b, stride_n)
    column = tl.where(o_n < outputs, o_n, 0).to(tl.int64) * (channels * SOURCES)
    o_a = row[:, None] + o_k[None, :]  # [BM, BK]
    o_w = column[:, None] + o_k[None, :]  # [BN, BK]

    z = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    source, channel = 0, 0
    for _ in range(SOURCES * tl.cdiv(channels, BLOCK_K)):
        p_a = pick(tensors, source) + channel + o_a
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


PRODUCT = tuned(product_kernel, HALF_CONFIGS)


def joined_linear(sources: Sequence[Tensor], weight: Tensor, bias: Tensor | None, grad: Tensor | None = None) -> Tensor:
    """GELU(sum_s A_s W_s^T + bias) [M, O], or, given a contiguous `grad` [M, O], grad * GELU'(...).

    `sources` are as `launch` takes them; `weight` is [O, S*C], contiguous; `bias` [O] or `None`.
    """
    batch, patches, channels = sources[0].shape
    rows, outputs = batch * patches, weight.shape[0]
    out = torch.empty((rows, outputs), dtype=weight.dtype, device=weight.device)
    launch(
        PRODUCT,
        lambda blocks: triton.cdiv(rows, blocks["BLOCK_M"]) * triton.cdiv(outputs, blocks["BLOCK_N"]),
        sources,
        weight=weight,
        bias=bias,
        grad=grad,
        out=out,
        outputs=outputs,
        HAS_BIAS=bias is not None,
        BACKWARD=grad is not None,
        EVEN_CHANNELS=channels % WIDEST_K == 0,
    )
    return out
