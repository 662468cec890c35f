"""Gradients of `joined_linear`: two more products, on dZ [M, O] and the sources as they lie.

dW_s = dZ^T A_s        dA_s = dZ W_s        a tensor for each source
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import HALF_GRADIENT_CONFIGS, WIDEST_K, launch, tuned
from .tiles import add_product, pick, row_offsets, tile


@triton.jit
def weight_grad_kernel(
    tensors,
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
    EVEN_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Output [O, S*C]: a tile is [BM outputs, BN channels of one source] of grad^T A_s. EVEN_ROWS: 64 | M."""
    tiles_c = tl.cdiv(channels, BLOCK_N)
    i_m, i_n = tile(tl.program_id(0), tl.cdiv(outputs, BLOCK_M), tiles_c * SOURCES, 8)
    source = i_n // tiles_c
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n % tiles_c * BLOCK_N + tl.arange(0, BLOCK_N)
    m_g, m_a = (o_m < outputs)[None, :], (o_n < channels)[None, :]
    p_g = grad + o_m[None, :]
    p_a = pick(tensors, source) + o_n[None, :]

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, rows, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        o_a = row_offsets(o_k, patches, stride_b, stride_n)[:, None]
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
    patches,
    channels,
    outputs,
    stride_b,
    stride_n,
    SOURCES: tl.constexpr,
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
    row = row_offsets(o_m, patches, stride_b, stride_n)
    tl.store(pick(tensors, source) + row[:, None] + o_n[None, :], total, mask=m_out)


WEIGHT_GRAD = tuned(weight_grad_kernel, HALF_GRADIENT_CONFIGS)
SOURCE_GRAD = tuned(source_grad_kernel, HALF_GRADIENT_CONFIGS)


def weight_grad(sources: Sequence[Tensor], grad: Tensor) -> Tensor:
    """Gradient dW [O, S*C] from the sources and contiguous dZ [M, O]."""
    count, channels, (rows, outputs) = len(sources), sources[0].shape[2], grad.shape
    out = torch.empty((outputs, count * channels), dtype=grad.dtype, device=grad.device)
    launch(
        WEIGHT_GRAD,
        lambda blocks: triton.cdiv(outputs, blocks["BLOCK_M"]) * triton.cdiv(channels, blocks["BLOCK_N"]) * count,
        sources,
        grad=grad,
        out=out,
        outputs=outputs,
        EVEN_ROWS=rows % WIDEST_K == 0,
    )
    return out


def source_grads(sources: Sequence[Tensor], weight: Tensor, grad: Tensor) -> list[Tensor]:
    """dA_s, each as large as its source, from contiguous weight [O, S*C] and dZ [M, O]."""
    out = [torch.empty(source.shape, dtype=grad.dtype, device=grad.device) for source in sources]
    count, channels, (rows, outputs) = len(sources), sources[0].shape[2], grad.shape
    launch(
        SOURCE_GRAD,
        lambda blocks: triton.cdiv(rows, blocks["BLOCK_M"]) * triton.cdiv(channels, blocks["BLOCK_N"]) * count,
        out,
        weight=weight,
        grad=grad,
        outputs=outputs,
        EVEN_OUTPUTS=outputs % WIDEST_K == 0,
    )
    return out
