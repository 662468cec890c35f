"""`place_tokens` on Triton: one pass that writes each position's row from where it belongs.

Names: P positions (B * T), H width, R tokens; `o_` offsets, `p_` pointers, `b_` tiles [BP positions, BH elements].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_P, BLOCK_H = 4, 1024  # four rows a program, 16 bytes a thread of each in half precision


@triton.jit
def place_kernel(
    embeddings, tokens, mask, rank, out, positions, rows, width, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr
):
    """Output [P, H]: where mask [P], row rank - 1 of tokens [R, H], else the row of embeddings [P, H]."""
    o_p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = o_p < positions
    is_token = tl.load(mask + o_p, mask=inside, other=0) != 0
    row = tl.load(rank + o_p, mask=inside, other=1).to(tl.int64) - 1
    wide = (o_h < width)[None, :]
    p_embedding = embeddings + o_p[:, None] * width + o_h[None, :]
    p_token = tokens + row[:, None] * width + o_h[None, :]
    # A prompt with more places than tokens is an error that is reported elsewhere; here it must read nothing beyond.
    b_token = tl.load(p_token, mask=(inside & is_token & (row < rows))[:, None] & wide, other=0.0)
    b_embedding = tl.load(p_embedding, mask=(inside & ~is_token)[:, None] & wide, other=0.0)
    o_out = o_p[:, None] * width + o_h[None, :]
    tl.store(out + o_out, tl.where(is_token[:, None], b_token, b_embedding), mask=inside[:, None] & wide)


@triton.jit
def collect_kernel(
    grad,
    mask,
    rank,
    out_embeddings,
    out_tokens,
    positions,
    rows,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The gradient: rows of grad [P, H] to out_tokens [R, H] where mask, the others to out_embeddings [P, H]."""
    o_p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = o_p < positions
    is_token = tl.load(mask + o_p, mask=inside, other=0) != 0
    row = tl.load(rank + o_p, mask=inside, other=1).to(tl.int64) - 1
    wide = (o_h < width)[None, :]
    o_grad = o_p[:, None] * width + o_h[None, :]
    b_grad = tl.load(grad + o_grad, mask=inside[:, None] & wide, other=0.0)
    m_token = (inside & is_token & (row < rows))[:, None] & wide
    tl.store(out_tokens + row[:, None] * width + o_h[None, :], b_grad, mask=m_token)
    b_embedding = tl.where(is_token[:, None], 0.0, b_grad)
    tl.store(out_embeddings + o_grad, b_embedding, mask=inside[:, None] & wide)


def forward(embeddings: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Place tokens: embeddings [B, T, H], tokens [R, H], mask [B, T] -> [B, T, H]."""
    out = torch.empty(embeddings.shape, dtype=embeddings.dtype, device=embeddings.device)
    positions, width = mask.numel(), embeddings.shape[-1]
    arrays = (embeddings.contiguous(), tokens.contiguous(), mask.contiguous(), _ranks(mask), out)
    with torch.cuda.device_of(out):  # Triton launches on the current device
        place_kernel[_grid(positions, width)](*arrays, positions, len(tokens), width, BLOCK_P, BLOCK_H)
    return out


def backward(grad: Tensor, mask: Tensor, rows: int) -> list[Tensor]:
    """Gradients of embeddings [B, T, H] and tokens [R, H], of the gradient [B, T, H]."""
    positions, width = mask.numel(), grad.shape[-1]
    of_embeddings = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    of_tokens = torch.empty(rows, width, dtype=grad.dtype, device=grad.device)
    arrays = (grad.contiguous(), mask.contiguous(), _ranks(mask), of_embeddings, of_tokens)
    with torch.cuda.device_of(grad):
        collect_kernel[_grid(positions, width)](*arrays, positions, rows, width, BLOCK_P, BLOCK_H)
    return [of_embeddings, of_tokens]


def _ranks(mask: Tensor) -> Tensor:
    """How many places there are up to and including each position, [B * T]."""
    return mask.flatten().cumsum(0, dtype=torch.int32)


def _grid(positions: int, width: int) -> tuple[int, int]:
    return triton.cdiv(positions, BLOCK_P), triton.cdiv(width, BLOCK_H)
