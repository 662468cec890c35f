"""The kernels inside a model: features, logits, loss and gradients as with plain torch, and layers they leave alone."""

import copy

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_stf import apply_pooling, apply_stf, convert_checkpoint, load_model
from llava_stf.errors import KernelError
from llava_stf.inference import LlavaStf
from llava_stf.inference.compiled import CompiledGeneration
from llava_stf.models.fusion.build import build_projector, use_kernels
from llava_stf.models.fusion.modeling import image_tokens_of
from llava_stf_kernels import dispatch, place_tokens
from llava_stf_kernels.dispatch import is_interpreting

from ..llava_stf.test_config import config

PICTURE = Image.radial_gradient("L").convert("RGB")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True, params=DEVICES)
def device(request):
    if request.param == "cpu" and not is_interpreting():
        pytest.skip("Triton runs on the GPU here, not in its interpreter")
    return request.param


def model_with(kernels, folder, device, dtype="float32"):
    return load_model(folder, kernels=kernels, dtype=dtype, device=device)


def inputs_of(llava, images=PICTURE, text="USER: <image>\nWhat is it? ASSISTANT:"):
    return llava.processor(images=images, text=text, return_tensors="pt").to(llava.model.device, llava.model.dtype)


@pytest.mark.parametrize("name", ["tiny", "stf_folder"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_logits_are_the_same(request, name, dtype, tolerance, device):
    """bfloat16 passes several roundings of 2^-9 each through the LLM."""
    folder = name if name == "tiny" else request.getfixturevalue(name)
    by_kernels = {kernels: model_with(kernels, folder, device, dtype) for kernels in ("triton", "torch")}
    inputs = inputs_of(by_kernels["torch"])
    with torch.no_grad():
        found, expected = (by_kernels[kernels].model(**inputs).logits.double() for kernels in ("triton", "torch"))
    assert (found - expected).norm() / expected.norm() < tolerance


def test_golden_numbers_with_kernels(golden_stf, tmp_path, device):
    convert_checkpoint(golden_stf / "model.safetensors", tmp_path / "hf", progress=False)
    model, _ = load_model(
        tmp_path / "hf", kernels="triton", dtype="float32", attn_implementation="eager", device=device
    )
    case = {name: tensor.to(device) for name, tensor in load_file(golden_stf / "case_single.safetensors").items()}
    tokens = [model.config.image_token_id] * model.config.image_seq_length
    ids = [i for token in case["input_ids"][0].tolist() for i in (tokens if token == -200 else [token])]
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([ids], device=device), pixel_values=case["pixel_values"])
    vocabulary = case["logits"].shape[-1]
    torch.testing.assert_close(image_tokens_of(outputs), case["image_features"].flatten(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.logits[..., :vocabulary], case["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("patch", [apply_stf, apply_pooling])
def test_a_training_step_gives_the_same_loss_and_gradients(plain_folder, patch, device):
    processor = LlavaProcessor.from_pretrained(plain_folder)
    plain = LlavaForConditionalGeneration.from_pretrained(plain_folder).to(device)
    steps = []
    for kernels in ("triton", "torch"):
        fused = copy.deepcopy(processor)
        model = patch(copy.deepcopy(plain), fused, window=2, kernels=kernels)
        inputs = fused(images=PICTURE, text="USER: <image>\nWhat is it? ASSISTANT:", return_tensors="pt").to(device)
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        steps.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (expected, wanted) = steps
    torch.testing.assert_close(loss, expected)
    assert gradients.keys() == wanted.keys()
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        # Some are zero but for rounding: a key's bias shifts all scores alike.
        error = (gradients[name] - gradient).norm() / gradient.norm().clamp_min(1e-5 * largest)
        assert error < 1e-4, name  # float32 sums in another order, through the whole network


@pytest.mark.parametrize("change", ["in place", "data", "a new parameter", "merged adapter", "merged in a copy"])
def test_a_weight_that_changed_between_two_calls_is_seen(stf_folder, device, change):
    """However it changes: not all ways move torch's version counter or the address."""
    llava = model_with("triton", stf_folder, device)
    model, projector = llava.model, llava.model.model.multi_modal_projector
    inputs, layer = inputs_of(llava), projector.spatial_fusion.linear_1
    with torch.no_grad():
        before = model(**inputs).logits
        if change == "in place":
            layer.weight.mul_(-2)
        elif change == "data":
            layer.weight.data.mul_(-2)
        elif change == "a new parameter":
            layer.weight = nn.Parameter(layer.weight * -2)
        else:
            peft = pytest.importorskip("peft", reason="needs the extra 'train'")
            torch.manual_seed(0)
            config = peft.LoraConfig(r=2, target_modules=r".*spatial_fusion\.linear_1", init_lora_weights=False)
            model = peft.get_peft_model(model, config).merge_and_unload(safe_merge=change == "merged in a copy")
        changed = model(**inputs).logits
        use_kernels(projector, "torch")
        expected = model(**inputs).logits
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)  # float32 sums in another order
    assert not torch.allclose(before, expected, rtol=1e-2, atol=1e-2)


def test_a_sharded_projector_sees_every_step(device, tmp_path):
    """FSDP2 gathers weights behind the version counter, often at the address of the step before."""
    torch.manual_seed(0)
    projector = build_projector(config(grid=4, width=32)).to(device)
    states = [torch.randn(1, 16, 32, device=device) for _ in range(2)]
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        fully_shard(projector, mesh=init_device_mesh(device, (1,)))
        optimizer = torch.optim.SGD(projector.parameters(), 0.05)
        for _ in range(6):
            by_kernels = []
            for kernels in ("triton", "torch"):
                use_kernels(projector, kernels)
                with torch.no_grad():
                    by_kernels.append(projector(states))
            torch.testing.assert_close(*by_kernels, atol=1e-5, rtol=0)
            use_kernels(projector, "triton")
            projector(states).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        distributed.destroy_process_group()


def test_a_compiled_model_sees_weights_that_change(stf_folder, device):
    llava = model_with("triton", stf_folder, device)
    compiled = LlavaStf(llava.model, llava.processor, CompiledGeneration(llava.model, backend="eager"))
    layer = llava.model.model.multi_modal_projector.spatial_fusion.linear_1

    def first_scores(asked):
        seen = []
        asked.ask(
            PICTURE, "What?", max_new_tokens=1, logits_processor=[lambda ids, scores: seen.append(scores) or scores]
        )
        return seen[0]

    torch.testing.assert_close(first_scores(compiled), first_scores(llava), atol=1e-4, rtol=1e-4)
    before = first_scores(compiled)
    with torch.no_grad():
        layer.weight.mul_(-2)
    torch.testing.assert_close(first_scores(compiled), first_scores(llava), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first_scores(compiled), before)


def test_the_checkpoints_order_is_saved(stf_folder, device, tmp_path):
    llava = model_with("triton", stf_folder, device)
    with torch.no_grad():
        llava.model(**inputs_of(llava))
    llava.model.save_pretrained(tmp_path)
    saved, original = (load_file(folder / "model.safetensors") for folder in (tmp_path, stf_folder))
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in original.items())


def test_layers_with_lora_run_as_they_are(stf_folder, device):
    peft = pytest.importorskip("peft", reason="needs the extra 'train'")
    llava = model_with("triton", stf_folder, device)
    inputs = inputs_of(llava)
    config = peft.LoraConfig(r=2, target_modules=r".*(block|spatial)_fusion\.linear_1", init_lora_weights=False)
    wrapped = peft.get_peft_model(llava.model, config)
    with torch.no_grad():
        adapted = wrapped(**inputs).logits
        with wrapped.disable_adapter():
            plain = wrapped(**inputs).logits
        merged = wrapped.merge_and_unload()(**inputs).logits
    assert not torch.allclose(adapted, plain)
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)


def test_quantized_layers_run_as_they_are(device):
    quantized_layers = pytest.importorskip("bitsandbytes.nn", reason="needs the extra 'quantization'")

    llava = model_with("triton", "tiny", device)
    fusion = llava.model.model.multi_modal_projector.spatial_fusion
    inputs, dense = inputs_of(llava), fusion.linear_1
    quantized = quantized_layers.Linear4bit(dense.in_features, dense.out_features, quant_type="nf4")
    quantized.load_state_dict(dense.state_dict())
    fusion.linear_1 = quantized.to(device)
    with torch.no_grad():
        found = llava.model(**inputs).logits
        use_kernels(llava.model.model.multi_modal_projector, "torch")
        expected = llava.model(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_run_is_refused_and_the_model_left_alone(monkeypatch, plain_folder, stf_folder):
    monkeypatch.setattr(dispatch, "is_interpreting", lambda: False)
    dispatch._decide.cache_clear()
    plain = LlavaForConditionalGeneration.from_pretrained(plain_folder)
    for ask in (
        lambda: apply_stf(plain, kernels="triton"),
        lambda: load_model(stf_folder, device="cpu", kernels="triton"),
        lambda: load_model(stf_folder, device="cpu", kernels="cuda"),
        lambda: load_model(plain_folder, device="cpu", kernels="triton", vision_tokens="all"),
    ):
        with pytest.raises(KernelError, match=r"need a CUDA device|found 'cuda'|has none"):
            ask()
    dispatch._decide.cache_clear()
    assert type(plain) is LlavaForConditionalGeneration
    monkeypatch.setenv("LLAVA_STF_KERNELS", "triton")
    with pytest.raises(KernelError, match="LLAVA_STF_KERNELS"):
        load_model(stf_folder, device="cpu")


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_between_pixels_and_prompt(stf_folder):
    llava = load_model(stf_folder, device="cuda", dtype="bfloat16")
    inputs, model = inputs_of(llava), llava.model.model
    mask = inputs["input_ids"] == llava.model.config.image_token_id

    @torch.no_grad()
    def embed():
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        return place_tokens(embeddings, torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output), mask)

    expected = embed()  # kernels are compiled, and tiles measured, at the first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = embed()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)
