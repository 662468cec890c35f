"""The projector spread over ranks: what the ranks give adds up to the whole. The ranks are played one after another."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from llava_stf import LlavaStfConfig
from llava_stf.errors import FusionError
from llava_stf.models.fusion.build import build_projector
from llava_stf.vllm_plugin import projector as shared


def stf_config(fusion):
    sizes = {"intermediate_size": 32, "num_attention_heads": 2}
    return LlavaStfConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, num_hidden_layers=3, image_size=112, patch_size=14, **sizes),
        text_config=LlamaConfig(hidden_size=24, num_hidden_layers=1, vocab_size=50, **sizes),
        fusion=fusion,
        fusion_windows=[2, 4],
        image_token_index=49,
    )


def shares(config, whole, ranks, monkeypatch):
    """The projectors of all ranks with their weights, each giving its summand."""
    monkeypatch.setattr(shared, "get_tensor_model_parallel_world_size", lambda: ranks)
    monkeypatch.setattr(shared, "tensor_model_parallel_all_reduce", lambda summand: summand)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(shared, "get_tensor_model_parallel_rank", lambda rank=rank: rank)
        parts.append(shared.build_shared_projector(config))
        for name, parameter in parts[-1].named_parameters():
            parameter.weight_loader(parameter, whole[name])
    return parts


@pytest.mark.parametrize("window", [2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("fusion", ["stf", "pool"])
@torch.inference_mode()
def test_the_ranks_add_up(monkeypatch, fusion, ranks, window):
    torch.manual_seed(0)
    config = stf_config(fusion)
    whole = build_projector(config)
    states = [torch.randn(3, 64, 16) for _ in config.fusion_states]
    parts = shares(config, whole.state_dict(), ranks, monkeypatch)
    assert (
        sum(parameter.numel() for parameter in parts[0].parameters())
        < sum(parameter.numel() for parameter in whole.parameters()) / ranks + 200
    )  # every rank has the biases of the second layers
    if fusion == "stf":
        fused = sum(part.block_fusion(states) for part in parts)
        found = sum(part.spatial_fusion(fused, window) for part in parts)
    else:
        found = sum(part(states, window) for part in parts)
    torch.testing.assert_close(found, whole(states, window), rtol=1e-5, atol=1e-6)


def test_units_that_cannot_be_spread(monkeypatch):
    config = stf_config("stf")
    with pytest.raises(FusionError, match="cannot be spread over 3 ranks"):
        shares(config, build_projector(config).state_dict(), 3, monkeypatch)
