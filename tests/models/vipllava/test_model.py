"""ViP-LLaVA on fused tokens against transformers' own: the mean is exact, undo, saving, asking, refusals."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from llava_stf import (
    VipLlavaStfConfig,
    VipLlavaStfForConditionalGeneration,
    apply_pooling,
    apply_stf,
    load_model,
    remove_stf,
)
from llava_stf.analysis.counting import projector_flops
from llava_stf.analysis.visualise import block_contributions
from llava_stf.errors import FusionError
from llava_stf.loading.testing import tiny_vipllava
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
from llava_stf.reduction import apply_reduction


def image():
    pixels = torch.randint(0, 256, (60, 44, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


def encode(processor, model):
    inputs = processor(images=[image(), image()], text="<image>What?<image>", return_tensors="pt")
    with torch.inference_mode():
        return inputs, model(**inputs).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = tiny_vipllava()
    folder = tmp_path_factory.mktemp("vip")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


APPLY = {"stf": apply_stf, "pool": apply_pooling}


@pytest.fixture(params=APPLY)
def fusion(request):
    return request.param


@pytest.mark.parametrize("window", [1, 2, 4])
def test_tokens_are_the_means_of_the_plain_projector(window, fusion):
    model, processor = tiny_vipllava()
    pixels = processor(images=image(), text="<image>", return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        plain = model.get_image_features(pixels, return_dict=True).pooler_output[0]
        cells = 4 // window
        expected = plain.view(cells, window, cells, window, -1).mean((1, 3)).flatten(0, 1)
        APPLY[fusion](model, processor, window=window)
        found = model.get_image_features(pixels, return_dict=True).pooler_output[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_one_set_of_weights_starts_as_the_mean_in_every_window():
    model, processor = tiny_vipllava()
    pixels = processor(images=image(), text="<image>", return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        plain = model.get_image_features(pixels, return_dict=True).pooler_output[0]
        apply_stf(model, processor, window=[2, 4])
        found = model.get_image_features(pixels, vision_tokens=1, return_dict=True).pooler_output[0]
    torch.testing.assert_close(found[0], plain.mean(0), rtol=1e-5, atol=1e-5)


def test_undo_is_bit_identical(fusion):
    model, processor = tiny_vipllava()
    before = encode(processor, model)[1]
    APPLY[fusion](model, processor)
    assert isinstance(processor, LlavaStfProcessor)
    assert encode(processor, model)[1].shape[1] < before.shape[1]
    remove_stf(model, processor)
    assert type(model) is VipLlavaForConditionalGeneration
    assert torch.equal(encode(processor, model)[1], before)


def test_one_patch_windows_are_the_plain_model(fusion):
    model, processor = tiny_vipllava()
    processor = LlavaStfProcessor(processor.image_processor, processor.tokenizer, patch_size=14, fusion_window=1)
    inputs, before = encode(processor, model)
    first = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    APPLY[fusion](model, window=1)
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, :1], first[:, :1])


def test_brought_to_a_quarter_it_is_saved_and_loaded_again(folder, tmp_path, fusion):
    llava = load_model(folder, vision_tokens=None if fusion == "stf" else "all")
    if fusion == "pool":
        apply_pooling(*llava)
    assert llava.vision_tokens == 4
    assert llava.model.config.fusion == fusion
    answer = llava.ask(image(), "What?", max_new_tokens=3)
    assert llava.ask_batch([(image(), "What?"), ([image(), image()], "Same?")], max_new_tokens=3)[0] == answer
    llava.model.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    assert load_model(tmp_path).ask(image(), "What?", max_new_tokens=3) == answer
    assert AutoConfig.from_pretrained(tmp_path).model_type == "vipllava_stf"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(model) is VipLlavaStfForConditionalGeneration
    processor = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    torch.testing.assert_close(encode(processor, model)[1], encode(llava.processor, llava.model)[1])


def test_all_tokens_are_the_untouched_model(folder):
    llava = load_model(folder, vision_tokens="all")
    assert type(llava.model) is VipLlavaForConditionalGeneration
    assert llava.vision_tokens == 16
    assert isinstance(llava.ask(image(), "What?", max_new_tokens=2), str)


def test_every_weight_of_the_projector_learns():
    model, processor = tiny_vipllava()
    inputs, _ = encode(processor, apply_stf(model, processor, init="random"))
    model(**inputs).logits.square().mean().backward()
    assert all(weight.grad.abs().max() > 0 for weight in model.model.multi_modal_projector.parameters())


def test_counted_flops_are_of_all_joined_channels():
    plain, width, llm = VipLlavaConfig(), 5 * 1024, 4096
    assert projector_flops(plain) == 2 * 576 * (width * llm + llm**2)
    assert projector_flops(VipLlavaStfConfig(fusion="pool")) == projector_flops(plain)
    assert projector_flops(VipLlavaStfConfig()) == 2 * 144 * 4 * llm * (4 * width + llm)


def test_what_the_norm_does_not_allow_is_refused(folder):
    model, processor = tiny_vipllava()
    with pytest.raises(FusionError, match="base projector on 16 channels, found 80"):
        apply_stf(model, processor, fusion_layers=[-2])
    with pytest.raises(FusionError, match="fusion 'stf' or 'pool', found 'mqt'"):
        VipLlavaStfConfig(fusion="mqt")
    with pytest.raises(FusionError, match="needs one hidden state"):
        apply_reduction(model, processor, "divprune", vision_tokens=4)
    assert type(model) is VipLlavaForConditionalGeneration
    with pytest.raises(FusionError, match="Expected a model with MBTF"):
        block_contributions(load_model(folder).model, torch.zeros(1, 3, 56, 56))
