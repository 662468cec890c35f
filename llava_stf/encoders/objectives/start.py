"""How an encoder's weights start, in place (docs/encoders/methods.md, Encoder)."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import ViTModel

from llava_stf.encoders.objectives.sincos import sincos_table


@torch.no_grad()
def xavier_start(encoder: ViTModel) -> ViTModel:
    """The start of PatchMix, MoS and MoCo v3.

    Linear layers are Xavier-uniform, biases 0, the class token almost 0.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patches = encoder.embeddings.patch_embeddings.projection
    bound = math.sqrt(6 / (patches.weight[0].numel() + patches.out_channels))
    nn.init.uniform_(patches.weight, -bound, bound)
    nn.init.zeros_(patches.bias)
    nn.init.normal_(encoder.embeddings.cls_token, std=1e-6)
    nn.init.trunc_normal_(encoder.embeddings.position_embeddings, std=0.02)
    return encoder


@torch.no_grad()
def normal_start(encoder: ViTModel) -> ViTModel:
    """The start of MGC.

    Linear layers and class token are truncated normal, positions sine-cosine.
    """
    draw_linear(encoder)
    embeddings, config = encoder.embeddings, encoder.config
    embeddings.patch_embeddings.projection.reset_parameters()
    nn.init.trunc_normal_(embeddings.cls_token, std=0.02)
    grid = config.image_size // config.patch_size
    embeddings.position_embeddings.copy_(sincos_table(config.hidden_size, grid)).requires_grad_(False)
    return encoder


def draw_linear(module: nn.Module) -> None:
    """Linear weights of `module` from a truncated normal of deviation 0.02, biases 0; in place."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
