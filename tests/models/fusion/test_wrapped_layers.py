"""Layers whose weight is not all there is to them, at every budget: adapters, offload, quantization, sharding."""

import copy
from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlavaForConditionalGeneration

from llava_stf import apply_pooling, apply_stf, load_model
from llava_stf.errors import FusionError
from llava_stf.loading.testing import write_tiny_llava
from llava_stf.models.fusion.weights import is_plain_layer, plain_weight, unreadable_reason

GRID = 12
BUDGETS = [36, 16, 9]  # windows of 2, which the weights are laid out for, 3 and 4


@pytest.fixture(scope="module")
def plain_grid12(tmp_path_factory):
    return write_tiny_llava(tmp_path_factory.mktemp("grid12"), stf=False, grid=GRID, positions=1024)


@pytest.fixture(scope="module")
def several_folder(plain_grid12, tmp_path_factory):
    """A LLaVA-STF for 36, 16 and 9 tokens, its projector random."""
    folder = tmp_path_factory.mktemp("several")
    model, processor = load_model(plain_grid12, vision_tokens="all", device="cpu")
    apply_stf(model, processor, window=[2, 3, 4], init="random")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 14 * GRID, 14 * GRID, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(model, pixels):
    return {
        count: torch.stack(model.get_image_features(pixels, vision_tokens=count).pooler_output) for count in BUDGETS
    }


def load(folder):
    return load_model(folder, device="cpu", dtype="float32").model


def adapters():
    peft = pytest.importorskip("peft", reason="needs the extra 'train'")
    targets = {"target_modules": r".*(block|spatial)_fusion\.linear_[12]"}
    return {
        "lora": peft.LoraConfig(r=4, init_lora_weights=False, **targets),
        "dora": peft.LoraConfig(r=4, init_lora_weights=False, use_dora=True, **targets),
        "ia3": peft.IA3Config(feedforward_modules=[], init_ia3_weights=False, **targets),
        "ia3 on inputs": peft.IA3Config(feedforward_modules=r".*linear_1", init_ia3_weights=False, **targets),
        "lokr": peft.LoKrConfig(r=4, init_weights=False, **targets),
        "oft": peft.OFTConfig(r=0, oft_block_size=4, init_weights=False, **targets),
    }


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "ia3 on inputs", "lokr", "oft"])
def test_an_adapter_counts_before_it_is_merged(several_folder, pixels, name):
    peft = pytest.importorskip("peft", reason="needs the extra 'train'")
    model = load(several_folder)
    before = features(model, pixels)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, adapters()[name]).eval()
    if name.startswith("ia3"):  # which peft draws so close to 1 that it would not be seen
        for parameter_name, parameter in wrapped.named_parameters():
            if "ia3_l" in parameter_name:
                nn.init.uniform_(parameter, 0.5, 1.5)
    adapted = features(model, pixels)
    merged = features(wrapped.merge_and_unload(), pixels)
    for count in BUDGETS:
        assert not torch.allclose(adapted[count], before[count], rtol=0.05)
        # Sums of 64 products in float32, in another order.
        torch.testing.assert_close(adapted[count], merged[count], atol=1e-4, rtol=1e-4)


def test_adapters_learn_at_every_budget(several_folder, pixels):
    peft = pytest.importorskip("peft", reason="needs the extra 'train'")
    model = load(several_folder)
    wrapped = peft.get_peft_model(model, adapters()["lora"])
    for count in BUDGETS:
        wrapped.zero_grad()
        torch.stack(model.get_image_features(pixels, vision_tokens=count).pooler_output).square().mean().backward()
        gradients = [p.grad for name, p in wrapped.named_parameters() if "lora_" in name]
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("target", ["cpu", "disk"])
def test_an_offloaded_projector_gives_the_same(several_folder, pixels, target, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    expected, model = features(load(several_folder), pixels), load(several_folder)
    if target == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    found = features(model, pixels)
    for count in BUDGETS:
        torch.testing.assert_close(found[count], expected[count], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_a_quantized_projector_gives_every_budget(several_folder, pixels, bits):
    """nf4 computes in float32 with its dequantized weight, so that a plain layer of that weight must give the same.

    int8 rounds its input row by row, too, to a step of 1/127 of the largest value.
    """
    bnb = pytest.importorskip("bitsandbytes", reason="needs the extra 'quantization'")
    model = load(several_folder)
    fusion = model.model.multi_modal_projector.spatial_fusion
    dense = fusion.linear_1
    if bits == "nf4":
        quantized = bnb.nn.Linear4bit(dense.in_features, dense.out_features, quant_type="nf4")
    else:
        quantized = bnb.nn.Linear8bitLt(dense.in_features, dense.out_features, has_fp16_weights=False)
    quantized.load_state_dict(dense.state_dict())
    fusion.linear_1 = quantized.to("cpu")
    found = features(model, pixels)
    if bits == "nf4":
        with torch.no_grad():
            dense.weight.copy_(bnb.functional.dequantize_4bit(quantized.weight, quantized.weight.quant_state))
    fusion.linear_1 = dense
    for count, expected in features(model, pixels).items():
        error = (found[count] - expected).norm() / expected.norm()
        assert error < (1e-5 if bits == "nf4" else 0.05)


def whole(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder).eval()


def offloaded(folder, tmp_path):
    parts = ("model.vision_tower", "model.language_model", "lm_head")
    device_map = dict.fromkeys(parts, "cpu") | {"model.multi_modal_projector": "disk"}
    return LlavaForConditionalGeneration.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path).eval()


def quantized_projector(folder, tmp_path):
    bnb = pytest.importorskip("bitsandbytes.nn", reason="needs the extra 'quantization'")
    model = whole(folder)
    layer = model.model.multi_modal_projector.linear_2
    new = bnb.Linear4bit(layer.in_features, layer.out_features, quant_type="nf4")
    new.load_state_dict(layer.state_dict())
    model.model.multi_modal_projector.linear_2 = new.to("cpu")
    return model


def adapted_projector(folder, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra 'train'")
    model = whole(folder)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=r".*multi_modal_projector\.linear_1"), model)
    return model


@pytest.mark.parametrize("prepare", [offloaded, quantized_projector, adapted_projector], ids=lambda f: f.__name__)
@pytest.mark.parametrize("init", ["random", "pool", "adapter", None])
def test_a_projector_that_is_not_whole_is_refused_before_anything_changes(
    plain_folder, stf_folder, tmp_path, prepare, init
):
    adapter = tmp_path / "adapter.safetensors"
    if init == "adapter":
        from safetensors.torch import load_file, save_file

        weights = load_file(stf_folder / "model.safetensors")
        save_file({name: w for name, w in weights.items() if name.startswith("multi_modal_projector.")}, adapter)
    model = prepare(plain_folder, tmp_path / "offload")
    projector, config, attributes = model.model.multi_modal_projector, model.config, set(vars(model))
    change = apply_pooling if init is None else partial(apply_stf, init=adapter if init == "adapter" else init)
    with pytest.raises(FusionError, match=r"multi_modal_projector\.linear_[12], found one that is"):
        change(model)
    assert type(model) is LlavaForConditionalGeneration
    assert model.model.multi_modal_projector is projector
    assert model.config is config
    assert set(vars(model)) == attributes


def test_hooks_that_bring_inputs_to_the_projectors_device_are_taken_over(plain_folder, pixels):
    """What accelerate puts on a model that lies on two devices and is offloaded nowhere."""
    hooks = pytest.importorskip("accelerate.hooks")
    model = whole(plain_folder)
    hooks.attach_execution_device_hook(model.model.multi_modal_projector, "cpu")
    apply_stf(model)
    hook = model.model.multi_modal_projector._hf_hook
    assert isinstance(hook, hooks.AlignDevicesHook)
    assert hook.execution_device == "cpu"
    assert torch.isfinite(model.get_image_features(torch.randn(1, 3, 56, 56)).pooler_output[0]).all()


def test_what_is_plain_and_what_is_not():
    layer = nn.Linear(3, 2)
    assert is_plain_layer(layer)
    assert plain_weight(layer, "it") is layer.weight
    hooked = copy.deepcopy(layer)
    hooked.register_forward_hook(lambda *args: None)
    assert not is_plain_layer(hooked)
    assert unreadable_reason(hooked) is None
    for other, word in (
        (nn.Linear(3, 2, device="meta"), "offloaded"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "wrapped"),
        (nn.utils.parametrize.register_parametrization(nn.Linear(3, 2), "weight", nn.Tanh()), "wrapped"),
        (nn.Sequential(layer), "wrapped"),
    ):
        assert not is_plain_layer(other)
        with pytest.raises(FusionError, match=f"at it, found one that is .*{word}"):
            plain_weight(other, "it")


def test_a_sharded_weight_is_no_plain_one():
    layer = nn.Linear(3, 2)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        assert not is_plain_layer(layer)
        with pytest.raises(FusionError, match="sharded"):
            plain_weight(layer, "it")
    finally:
        distributed.destroy_process_group()
