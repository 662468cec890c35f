"""MBTF, STF and the warm start, against the formulas of the paper and the authors' own outputs."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llava_stf.errors import FusionError
from llava_stf.models.fusion.pooling import PooledProjector
from llava_stf.models.fusion.projector import LlavaStfProjector
from llava_stf.models.fusion.warm_start import init_from_pooling
from llava_stf_kernels import gather_windows

from ..llava_stf.test_config import config


def test_first_stf_layer_is_a_strided_convolution():
    cfg = config(grid=4, width=8)
    torch.manual_seed(0)
    stf = LlavaStfProjector(cfg).spatial_fusion.double()
    x = torch.randn(2, 16, 8, dtype=torch.double)
    weight = stf.linear_1.weight.view(-1, 8, 2, 2)
    image = x.transpose(1, 2).reshape(2, 8, 4, 4)
    conv = F.conv2d(image, weight, stf.linear_1.bias, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stf(x), stf.linear_2(F.gelu(conv)))


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("blocks", [3, 6, 12])
def test_warm_start_is_exactly_mean_pooling(window, blocks):
    cfg = config(grid=4, blocks=blocks, fusion_window=window)
    torch.manual_seed(0)
    pooled, projector = PooledProjector(config(grid=4, blocks=blocks, fusion="pool", fusion_window=window)), None
    nn.init.normal_(pooled.linear_1.bias)
    projector = LlavaStfProjector(cfg).double()
    pooled.double()
    init_from_pooling(projector, pooled)
    states = list(torch.randn(len(cfg.fusion_states), 2, 16, 16, dtype=torch.double))
    expected = pooled(states[:1])
    # The base's weights pass through float32 on their way; they are float32 values.
    torch.testing.assert_close(projector(states), expected, atol=1e-14, rtol=0)


def test_warm_start_leaves_every_unused_unit_able_to_learn():
    cfg = config(grid=4, fusion_block_hidden_size=64, fusion_hidden_size=160)
    base = LlavaMultiModalProjector(config(grid=4, fusion="pool"))
    projector = LlavaStfProjector(cfg)
    init_from_pooling(projector, base)
    projector(list(torch.randn(2, 2, 16, 16))).square().sum().backward()
    for layer in (projector.block_fusion.linear_2, projector.spatial_fusion.linear_2):
        assert (layer.weight.grad.abs().sum(0) > 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("widths", "named"),
    [({"fusion_block_hidden_size": 31}, "at least 32"), ({"fusion_hidden_size": 127}, "at least 128")],
)
def test_warm_start_names_the_width_it_needs(widths, named):
    cfg = config(grid=4, **widths)
    with pytest.raises(FusionError, match=named):
        init_from_pooling(LlavaStfProjector(cfg), LlavaMultiModalProjector(config(grid=4, fusion="pool")))


@pytest.mark.parametrize("case", ["case_single", "case_two_images_one_prompt"])
def test_equals_the_authors_modules(golden_stf, case):
    weights = load_file(golden_stf / "model.safetensors")
    reference = load_file(golden_stf / f"{case}.safetensors")
    cfg = config(grid=4, blocks=24, width=32, hidden=64, fusion_hidden_size=512)
    projector = LlavaStfProjector(cfg)
    for ours, theirs in (
        (projector.block_fusion, "mm_projector_crosslayer"),
        (projector.spatial_fusion, "mm_projector"),
    ):
        ours.linear_1.load_state_dict({k: weights[f"model.{theirs}.0.{k}"] for k in ("weight", "bias")})
        ours.linear_2.load_state_dict({k: weights[f"model.{theirs}.2.{k}"] for k in ("weight", "bias")})
    states = reference["mbtf_input_concat"].split(32, dim=-1)
    fused = projector.block_fusion(states)
    torch.testing.assert_close(fused, reference["mbtf_output"], atol=1e-4, rtol=0)
    windows = gather_windows(reference["mbtf_output"], 2)
    assert torch.equal(windows, reference["stf_unfold"])
    features = projector(states)
    torch.testing.assert_close(features, reference["image_features"], atol=1e-4, rtol=0)
