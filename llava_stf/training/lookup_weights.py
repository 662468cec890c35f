"""First weights of a small language model from which it soon learns to look things up in its context."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

LOOKBACK = 3  # "B. red": from an option to its letter are two tokens, and one more where the word has two
SHARP_PAIRS = 4  # the fastest rotations of a head; only they tell neighbouring tokens apart
SHARPNESS = 9.0
COPIED = 0.5
MLP_SCALE = 0.3


def new_language_model(config: LlamaConfig) -> LlamaForCausalLM:
    """A LLaMA of this architecture with lookup weights, float32."""
    # With the usual 0.02 attention is so even at a small width that nothing tells it where to look.
    config.initializer_range = config.hidden_size**-0.5
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    set_lookup_weights(model)
    return model


@torch.no_grad()
def set_lookup_weights(model: LlamaForCausalLM) -> None:
    """Replace random weights by ones that look back, compare and copy; all of them are trained as any others.

    Queries and keys of a head begin equal, so that a token attends to where it stood before; what a head writes begins
    as what it read, and the output layer as the embedding, so that what is read is said. The first heads of the first
    layer attend to the token one, two, three before: with random weights this alone takes longer to come than all
    that follows.

    Args:
        model: a LLaMA whose heads all have keys of their own, as random weights of standard deviation width^-0.5.
    """
    width = model.config.hidden_size
    embedding = model.model.embed_tokens.weight
    embedding.normal_()
    model.lm_head.weight.copy_(embedding * width**-0.5)
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_(COPIED * attention.v_proj.weight.T)
        layer.mlp.down_proj.weight.mul_(MLP_SCALE)
    shared = torch.randn(width)  # what all tokens have in common: position alone decides between them
    embedding.add_(shared)
    first = model.model.layers[0].self_attn
    frequencies = model.model.rotary_emb.inv_freq
    size = 2 * len(frequencies)
    for head in range(min(LOOKBACK, model.config.num_attention_heads)):
        rows = slice(head * size, (head + 1) * size)
        key = torch.zeros(size)
        key[:SHARP_PAIRS] = key[len(frequencies) : len(frequencies) + SHARP_PAIRS] = SHARPNESS / width
        query = _rotated(key, -(head + 1) * frequencies)
        for weight, direction in ((first.q_proj.weight, query), (first.k_proj.weight, key)):
            weight[rows].mul_(0.1).add_(torch.outer(direction, shared))


def _rotated(vector: Tensor, angles: Tensor) -> Tensor:
    """The vector [2n] turned by the angles [n], its pairs laid out as in LLaMA's rotary embedding."""
    one, other = vector.chunk(2)
    return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()])
