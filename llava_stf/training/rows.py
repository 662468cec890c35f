"""A LLaMA's forward pass for training on a CPU: many questions behind one shared beginning.

An image takes more tokens than a question about it. Here its tokens are computed once, and the questions behind them
stand in rows that do not see each other, each at the positions that it has when it is asked alone. Rows are padded for
attention alone. Weights stay in float32; for embeddings in bfloat16 they are rounded at every step, as in mixed
precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

# Tokens of a product are a multiple of it where padding allows: in bfloat16 torch 2.13 (oneDNN) compiles a kernel for
# each size that it meets, see findings/torch_bfloat16_compiles_for_each_size.sh.
STEP = 128
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}  # which is faster is a matter of the CPU


class Rows:
    """How B beginnings of P tokens and the rows behind them lie in one flat list of tokens.

    First all beginnings, [B * P], then group by group the rows [B * Q * L], padded on the right.

    Args:
        config: of the language model.
        batch: B.
        prefix: P, may be 0.
        groups: (Q, L) of each group: Q rows of L tokens behind every beginning.
        kept: bool [T], which tokens are no padding.
        dtype: of the computation.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        prefix: int,
        groups: Sequence[tuple[int, int]],
        kept: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.batch, self.prefix, self.groups = batch, prefix, groups
        self.total = len(kept)
        (real,), (padding,) = (torch.nonzero(tokens, as_tuple=True) for tokens in (kept, ~kept))
        # Padding behind a row is seen by no token of it. Some is kept, so that products have few different sizes: the
        # first one of a size costs several times the next (see `STEP`).
        self.kept = torch.cat([real, padding[: -len(real) % STEP]])
        size = config.hidden_size // config.num_attention_heads
        positions = [torch.arange(prefix).repeat(batch)]
        positions += [(prefix + torch.arange(length)).repeat(batch * rows) for rows, length in groups]
        base = config.rope_parameters["rope_theta"]
        angles = torch.cat(positions)[self.kept, None] * base ** (-torch.arange(0, size, 2) / size)
        self.cos, self.sin = angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]
        lengths = {prefix, *(length for _, length in groups)}
        least = torch.finfo(dtype).min
        self.causal = {length: torch.full((length, length), least, dtype=dtype).triu(1) for length in lengths}

    def padded(self, kept: Tensor) -> Tensor:
        """What belongs to the kept tokens, in its places among zeros: [T, ...]."""
        return kept.new_zeros((self.total, *kept.shape[1:])).index_copy(0, self.kept, kept)

    def rotate(self, heads: Tensor) -> Tensor:
        """Queries or keys [kept tokens, heads, size] turned by the position of their token."""
        one, other = heads.chunk(2, dim=-1)
        return torch.cat([one * self.cos - other * self.sin, other * self.cos + one * self.sin], dim=-1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of every token to its beginning and to what stands before it in its row.

        All are [kept tokens, heads, size]; returns [kept tokens, heads * size].
        """
        heads, size = query.shape[1:]
        batch, prefix = self.batch, self.prefix
        parts = [batch * prefix, *(batch * rows * length for rows, length in self.groups)]
        padded = self.padded(torch.stack([query * size**-0.5, key, value], dim=1))
        (first, *others) = zip(*(whole.split(parts) for whole in padded.unbind(1)), strict=True)
        q, k, v = (part.view(batch, prefix, heads, size).transpose(1, 2).contiguous() for part in first)
        seen = (q @ k.transpose(-1, -2) + self.causal[prefix]).softmax(-1) @ v
        outputs = [seen.transpose(1, 2).reshape(-1, heads * size)]
        for (rows, length), parts_of_group in zip(self.groups, others, strict=True):
            own_q, own_k, own_v = (
                part.view(batch, rows, length, heads, size).permute(0, 3, 1, 2, 4).contiguous()
                for part in parts_of_group
            )
            far = (own_q.flatten(2, 3) @ k.transpose(-1, -2)).unflatten(2, (rows, length))
            near = own_q @ own_k.transpose(-1, -2) + self.causal[length]
            far, near = torch.cat([far, near], dim=-1).softmax(-1).split([prefix, length], dim=-1)
            seen = (far.flatten(2, 3) @ v).unflatten(2, (rows, length)) + near @ own_v
            outputs.append(seen.permute(0, 2, 3, 1, 4).reshape(-1, heads * size))
        return torch.cat(outputs)[self.kept]


def embed(model: LlamaModel, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Token ids [T] as embeddings [T, width]."""
    return F.embedding(ids, model.embed_tokens.weight).to(dtype)


def last_states(model: LlamaModel, x: Tensor, rows: Rows) -> Tensor:
    """Embeddings [T, width] that lie as `rows` says, to the states behind the last layer, before its norm.

    Those of padding mean nothing.
    """
    (states,) = states_behind(model, x, rows, [len(model.layers)])
    return states


def states_behind(model: LlamaModel, x: Tensor, rows: Rows, layers: Sequence[int]) -> list[Tensor]:
    """As `last_states`, the states behind so many layers each."""
    states = []
    config = model.config
    x = x[rows.kept]
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    for number, layer in enumerate(model.layers, 1):
        attention, mlp = layer.self_attn, layer.mlp
        y = _normed(x, layer.input_layernorm.weight, eps)
        joined = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        projected = F.linear(y, joined.to(x.dtype)).unflatten(-1, (3 * heads, -1))
        query, key = rows.rotate(projected[:, : 2 * heads]).chunk(2, dim=1)
        x = x + F.linear(rows.attend(query, key, projected[:, 2 * heads :]), attention.o_proj.weight.to(x.dtype))
        y = _normed(x, layer.post_attention_layernorm.weight, eps)
        gate, up = F.linear(y, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(x.dtype)).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, mlp.down_proj.weight.to(x.dtype))
        if number in layers:
            states.append(rows.padded(x))
    return states


def logits_of(model: LlamaModel, head: nn.Linear, states: Tensor) -> Tensor:
    """States of `last_states`, [N, width], to logits [N, vocabulary] in float32."""
    count = len(states)
    states = F.pad(states, (0, 0, 0, -count % STEP))
    normed = _normed(states, model.norm.weight, model.config.rms_norm_eps)
    return F.linear(normed, head.weight.to(states.dtype))[:count].float()


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
