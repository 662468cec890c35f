"""Encoders as their authors' programs write them."""

import re

import pytest
import torch

PLACES = {
    "timm": ("patch_embed.proj", "pos_embed", "blocks", "norm"),
    "aps": ("patchify", "pos_embedding", "transformer", "layer_norm"),
}
IN_BLOCK = {
    "layernorm_before": "norm1",
    "attention.o_proj": "attn.proj",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@pytest.fixture(scope="session")
def from_vit():
    """A `ViTModel`'s tensors by official name; APS's position table lacks the class token's row, a zero."""

    def rename(state_dict, layout="timm"):
        projection, positions, blocks, norm = PLACES[layout]
        whole = {"embeddings.patch_embeddings.projection": projection, "layernorm": norm}
        official = {}
        for name, tensor in state_dict.items():
            stem, _, kind = name.rpartition(".")
            block = re.fullmatch(r"layers\.(\d+)\.(.+)", stem)
            if name == "embeddings.cls_token":
                official["cls_token"] = tensor
            elif name == "embeddings.position_embeddings":
                official[positions] = tensor[:, 1:].transpose(0, 1).contiguous() if layout == "aps" else tensor
            elif stem in whole:
                official[f"{whole[stem]}.{kind}"] = tensor
            elif block and block[2] in IN_BLOCK:
                official[f"{blocks}.{block[1]}.{IN_BLOCK[block[2]]}.{kind}"] = tensor
            elif block and block[2] == "attention.q_proj":
                parts = [state_dict[f"layers.{block[1]}.attention.{letter}_proj.{kind}"] for letter in "qkv"]
                official[f"{blocks}.{block[1]}.attn.qkv.{kind}"] = torch.cat(parts)
        return official

    return rename
