"""What some tokens of a prompt attend to in one layer of the LLM, beside its own attention, which stays fused."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from llava_stf.reduction.tensors import gather_tokens


def rotated_keys(layer: LlamaDecoderLayer, normed: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The keys of one LLaMA layer, rotated to their positions: [B, key heads, T, head_dim].

    Args:
        layer: the layer.
        normed: its input behind `input_layernorm`, [B, T, H].
        rotary: cosine and sine of the positions, each [1 or B, T, head_dim].
    """
    keys = layer.self_attn.k_proj(normed).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
    return apply_rotary_pos_emb(keys, keys, *rotary)[1]


def attention_of(
    layer: LlamaDecoderLayer, hidden: Tensor, rotary: tuple[Tensor, Tensor], valid: Tensor, queries: Tensor
) -> Tensor:
    """What the tokens in `queries` attend to in one LLaMA layer, mean over the heads: float32 [B, Q, T].

    Padding, and what stands behind a query, gets nothing.

    Args:
        layer: the layer.
        hidden: its input, [B, T, H].
        rotary: cosine and sine of the positions, each [1 or B, T, head_dim].
        valid: bool [B, T], false for padding.
        queries: int64 [B, Q], columns of valid tokens.
    """
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    query = attention.q_proj(gather_tokens(normed, queries)).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    cos, sin = (gather_tokens(part.expand(len(hidden), -1, -1), queries) for part in rotary)
    query, _ = apply_rotary_pos_emb(query, query, cos, sin)
    keys = rotated_keys(layer, normed, rotary).repeat_interleave(attention.num_key_value_groups, dim=1)
    scores = (query @ keys.transpose(2, 3)) * attention.scaling  # [B, heads, Q, T]
    columns = torch.arange(hidden.shape[1], device=hidden.device)
    seen = valid[:, None] & (columns <= queries[..., None])
    return scores.float().masked_fill(~seen[:, None], -torch.inf).softmax(-1).mean(1)


def last_token_attention(
    layer: LlamaDecoderLayer, hidden: Tensor, rotary: tuple[Tensor, Tensor], valid: Tensor
) -> Tensor:
    """As `attention_of` for the last token of each row, before padding on the right: float32 [B, T]."""
    last = valid.long().cumsum(-1).argmax(-1, keepdim=True)
    return attention_of(layer, hidden, rotary, valid, last)[:, 0]
