"""Gradients of `joined_linear`: two more products, on dZ [M, O] and the sources as they lie.

dW_s = dZ^T A_s        dA_s = dZ W_s        written straight into the places of the sources
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import HALF_GRADIENT_CONFIGS, WIDEST_K, launch, tuned
from .sources import Sources
from .tiles import add_product, row_offsets, source_pointer, tile


@triton.jit
def weight_grad_kernel(
    tensors,
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
    first,
    jump_r,
    jump_q,
    SOURCES: tl.constexpr,
    WINDOW: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out [O, S*C]: a tile is [BM outputs, BN channels of one source] of grad^T A_s. EVEN_ROWS: 64 | M."""
    tiles_c = tl.cdiv(channels, BLOCK_N)
    i_m, i_n = tile(tl.program_id(0), tl.cdiv(outputs, BLOCK_M), tiles_c * SOURCES, 8)
    source = i_n // tiles_c
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n % tiles_c * BLOCK_N + tl.arange(0, BLOCK_N)
    m_g, m_a = (o_m < outputs)[None, :], (o_n < channels)[None, :]
    p_g = grad + o_m[None, :]
    p_a = source_pointer(tensors, source, first, jump_r, jump_q, WINDOW) + o_n[None, :]

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
    o_out = o_m.to(tl.int64)[:, None] * (channels * SOURCES) + (source * channels + o_n)[None, :]
    tl.store(out + o_out, total, mask=m_out)


@triton.jit
def source_grad_kernel(
    tensors,
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
    first,
    jump_r,
    jump_q,
    SOURCES: tl.constexpr,
    WINDOW: tl.constexpr,
    EVEN_OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sources' gradients: a tile is [BM rows, BN channels of one source] of grad W_s. EVEN_OUTPUTS: 64 | O."""
    tiles_c = tl.cdiv(channels, BLOCK_N)
    i_m, i_n = tile(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tiles_c * SOURCES, 8)
    source = i_n // tiles_c
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n % tiles_c * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    width = channels * SOURCES
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
    tl.store(
        source_pointer(tensors, source, first, jump_r, jump_q, WINDOW) + row[:, None] + o_n[None, :], total, mask=m_out
    )


WEIGHT_GRAD = tuned(weight_grad_kernel, HALF_GRADIENT_CONFIGS)
SOURCE_GRAD = tuned(source_grad_kernel, HALF_GRADIENT_CONFIGS)


def weight_grad(sources: Sources, grad: Tensor) -> Tensor:
    """dW [O, S*C] from the sources and contiguous dZ [M, O]."""
    channels, outputs = sources.channels, grad.shape[1]
    out = torch.empty((outputs, sources.count * channels), dtype=grad.dtype, device=grad.device)
    launch(
        WEIGHT_GRAD,
        lambda blocks: (
            triton.cdiv(outputs, blocks["BLOCK_M"]) * triton.cdiv(channels, blocks["BLOCK_N"]) * sources.count
        ),
        sources,
        grad=grad,
        out=out,
        outputs=outputs,
        EVEN_ROWS=sources.rows % WIDEST_K == 0,
    )
    return out


def write_source_grads(places: Sources, weight: Tensor, grad: Tensor) -> None:
    """Write dA_s into the places of the sources, from contiguous weight [O, S*C] and dZ [M, O]."""
    rows, channels, outputs = places.rows, places.channels, weight.shape[0]
    launch(
        SOURCE_GRAD,
        lambda blocks: triton.cdiv(rows, blocks["BLOCK_M"]) * triton.cdiv(channels, blocks["BLOCK_N"]) * places.count,
        places,
        weight=weight,
        grad=grad,
        outputs=outputs,
        EVEN_OUTPUTS=outputs % WIDEST_K == 0,
    )
