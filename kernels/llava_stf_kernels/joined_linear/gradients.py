"""Gradients of `joined_linear`: two more products, on dZ [B, R, Q, O] and the sources as they lie.

dW_s = dZ^T A_s        dA_s = dZ W_s        written straight into the places of the sources
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernel import HALF_GRADIENT_CONFIGS, add_product, pick, precision, row_offsets, source_shape, tile, tiles, tuned


@tuned(HALF_GRADIENT_CONFIGS, EVEN_ROWS=lambda args: args["rows"] % args["BLOCK_K"] == 0)
@triton.jit
def weight_grad_kernel(
    sources,
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
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
):
    """out [O, S*C]: a tile is [BM outputs, BN channels of one source] of grad^T A_s. EVEN_ROWS: BLOCK_K | M."""
    tiles_c = tl.cdiv(channels, BLOCK_N)
    i_m, i_n = tile(tl.program_id(0), tl.cdiv(outputs, BLOCK_M), tiles_c * len(sources), 8)
    source = i_n // tiles_c
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n % tiles_c * BLOCK_N + tl.arange(0, BLOCK_N)
    m_g, m_a = (o_m < outputs)[None, :], (o_n < channels)[None, :]
    p_g = grad + o_m[None, :]
    p_a = pick(sources, source) + o_n[None, :]

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, rows, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        o_a = row_offsets(o_k, rows_r, rows_q, stride_b, stride_r, stride_q)[:, None]
        o_g = o_k.to(tl.int64)[:, None] * outputs
        if EVEN_ROWS:
            b_g = tl.load(p_g + o_g, mask=m_g, other=0.0)  # [BK, BM]
            b_a = tl.load(p_a + o_a, mask=m_a, other=0.0)  # [BK, BN]
        else:
            inside = (o_k < rows)[:, None]
            b_g = tl.load(p_g + o_g, mask=m_g & inside, other=0.0)
            b_a = tl.load(p_a + o_a, mask=m_a & inside, other=0.0)
        total = add_product(total, b_g.T, b_a, PRECISION)

    m_out = (o_m < outputs)[:, None] & (o_n < channels)[None, :]
    o_out = o_m.to(tl.int64)[:, None] * (channels * len(sources)) + (source * channels + o_n)[None, :]
    tl.store(out + o_out, total, mask=m_out)


@tuned(HALF_GRADIENT_CONFIGS, EVEN_OUTPUTS=lambda args: args["outputs"] % args["BLOCK_K"] == 0)
@triton.jit
def source_grad_kernel(
    places,
    weight,
    grad,
    rows,
    rows_bucket,
    rows_r,
    rows_q,
    channels,
    outputs,
    stride_b,
    stride_r,
    stride_q,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_OUTPUTS: tl.constexpr,
):
    """places S x [M, C]: a tile is [BM rows, BN channels of one source] of grad W_s. EVEN_OUTPUTS: BLOCK_K | O."""
    tiles_c = tl.cdiv(channels, BLOCK_N)
    i_m, i_n = tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tiles_c * len(places), 8)
    source = i_n // tiles_c
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n % tiles_c * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    width = channels * len(places)
    p_g = grad + tl.where(o_m < rows, o_m, 0).to(tl.int64)[:, None] * outputs + o_k[None, :]
    p_w = weight + o_k[:, None] * width + (source * channels + o_n)[None, :]
    m_w = (o_n < channels)[None, :]

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, outputs, BLOCK_K):
        if EVEN_OUTPUTS:
            b_g = tl.load(p_g)  # [BM, BK]
            b_w = tl.load(p_w, mask=m_w, other=0.0)  # [BK, BN]
        else:
            inside = o_k < outputs - start
            b_g = tl.load(p_g, mask=inside[None, :], other=0.0)
            b_w = tl.load(p_w, mask=m_w & inside[:, None], other=0.0)
        total = add_product(total, b_g, b_w, PRECISION)
        p_g += BLOCK_K
        p_w += BLOCK_K * width

    m_out = (o_m < rows)[:, None] & (o_n < channels)[None, :]
    row = row_offsets(o_m, rows_r, rows_q, stride_b, stride_r, stride_q)
    tl.store(pick(places, source) + row[:, None] + o_n[None, :], total, mask=m_out)


def weight_grad(sources: Sequence[Tensor], grad: Tensor) -> Tensor:
    """dW [O, S*C] from S sources [B, R, Q, C] and contiguous dZ [B, R, Q, O]."""
    channels, outputs = sources[0].shape[-1], grad.shape[-1]
    out = torch.empty(outputs, len(sources) * channels, dtype=grad.dtype, device=grad.device)
    weight_grad_kernel[
        lambda args: (tiles(outputs, args["BLOCK_M"]) * tiles(channels, args["BLOCK_N"]) * len(sources),)
    ](
        sources=tuple(sources),
        grad=grad,
        out=out,
        outputs=outputs,
        **source_shape(sources[0]),
        PRECISION=precision(),
    )
    return out


def write_source_grads(places: Sequence[Tensor], weight: Tensor, grad: Tensor) -> None:
    """Write dA_s into S places [B, R, Q, C], alike in strides, from contiguous weight [O, S*C] and dZ [B, R, Q, O]."""
    shape = source_shape(places[0])
    source_grad_kernel[
        lambda args: (tiles(shape["rows"], args["BLOCK_M"]) * tiles(shape["channels"], args["BLOCK_N"]) * len(places),)
    ](
        places=tuple(places),
        weight=weight,
        grad=grad,
        outputs=weight.shape[0],
        **shape,
        PRECISION=precision(),
    )
