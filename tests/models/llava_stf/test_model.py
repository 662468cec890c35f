"""The model as a Hugging Face citizen: Auto classes, files, generation, attention, caches, compile, tower depth."""

import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors import safe_open
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

from llava_stf import LlavaStfForConditionalGeneration, LlavaStfModel, LlavaStfProcessor, load_model
from llava_stf.errors import FusionError
from llava_stf.models.fusion.modeling import image_tokens_of
from llava_stf.models.llava_stf.vocabulary import suppressed_ids
from llava_stf.models.vision.states import tower_blocks
from llava_stf_kernels.dispatch import is_interpreting

PICTURES = [Image.new("RGB", (80, 50), colour) for colour in ("red", "blue", "green")]
PROMPTS = ["USER: <image>\nWhat is it? ASSISTANT:", "USER: <image>\nDescribe what can be seen there. ASSISTANT:"]


@pytest.fixture(scope="module")
def loaded(stf_folder):
    model = AutoModelForImageTextToText.from_pretrained(stf_folder).eval()
    return model, AutoProcessor.from_pretrained(stf_folder)


def inputs_of(processor, prompts, images):
    return processor(images=images, text=prompts, padding=True, padding_side="left", return_tensors="pt")


IMPORT_ORDERS = {
    "ours first": "import llava_stf; from transformers import AutoModelForImageTextToText as M, AutoProcessor as P",
    "theirs first": "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P; import llava_stf",
    "llava first": "import llava_stf; from transformers import LlavaForConditionalGeneration; "
    "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P",
    "config first": "from transformers import AutoConfig; import llava_stf; "
    "from transformers import AutoProcessor as P, AutoModelForImageTextToText as M",
}


@pytest.mark.parametrize("order", IMPORT_ORDERS)
def test_auto_classes_know_the_model_in_any_import_order(stf_folder, order):
    code = f"{IMPORT_ORDERS[order]}; print(type(M.from_pretrained(r'{stf_folder}')).__name__, "
    code += f"type(P.from_pretrained(r'{stf_folder}')).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["LlavaStfForConditionalGeneration", "LlavaStfProcessor"]


@pytest.mark.parametrize("cls", [LlavaStfForConditionalGeneration, LlavaStfModel, AutoModel])
def test_classes_load_by_themselves(stf_folder, loaded, cls):
    model, info = cls.from_pretrained(stf_folder, output_loading_info=True)
    assert not info["missing_keys"]
    pixels = torch.ones(1, 3, 56, 56)
    assert torch.equal(
        model.eval().get_image_features(pixels).pooler_output[0], loaded[0].get_image_features(pixels).pooler_output[0]
    )


def test_files_carry_the_public_key_names(stf_folder, loaded):
    with safe_open(stf_folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {name.split(".")[0] for name in names} == {"language_model", "vision_tower", "multi_modal_projector"}
    assert {
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "multi_modal_projector.block_fusion.linear_1.weight",
        "multi_modal_projector.spatial_fusion.linear_2.bias",
    } <= names


def test_loading_misses_nothing_and_saving_again_changes_nothing(stf_folder, tmp_path):
    model, info = AutoModelForImageTextToText.from_pretrained(stf_folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.save_pretrained(tmp_path)
    with safe_open(stf_folder / "model.safetensors", "pt") as a, safe_open(tmp_path / "model.safetensors", "pt") as b:
        assert a.keys() == b.keys()
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in list(a.keys()))


def test_left_padded_batch_equals_single_prompts(loaded):
    model, processor = loaded
    together = model.generate(**inputs_of(processor, PROMPTS, PICTURES[:2]), max_new_tokens=8, do_sample=False)
    for row, prompt, picture in zip(together, PROMPTS, PICTURES, strict=False):
        alone = model.generate(**inputs_of(processor, prompt, picture), max_new_tokens=8, do_sample=False)
        assert row[-8:].tolist() == alone[0, -8:].tolist()


def test_several_images_in_one_prompt(loaded):
    model, processor = loaded
    prompt = "USER: <image>\n<image>\nCompare. ASSISTANT:"
    inputs = inputs_of(processor, prompt, PICTURES[:2])
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 2 * model.config.image_seq_length
    swapped = inputs_of(processor, prompt, PICTURES[1::-1])
    assert not torch.equal(model(**inputs).logits[:, -1], model(**swapped).logits[:, -1])


def test_outputs_tell_the_image_tokens(loaded):
    model, processor = loaded
    inputs = inputs_of(processor, PROMPTS[:1], PICTURES[:1])
    features = model.get_image_features(inputs["pixel_values"])
    with torch.no_grad():
        given = model(**inputs)
        encoded = model(**{**inputs, "pixel_values": None}, mm_encoder_outputs={"image": features})
    assert torch.equal(image_tokens_of(given), torch.cat(list(features.pooler_output)))
    assert torch.equal(encoded.logits, given.logits)


@pytest.mark.skipif(not is_interpreting(), reason="Triton runs on the GPU here, not in its interpreter")
@pytest.mark.parametrize(("kernels", "scatters"), [("triton", False), ("torch", True)])
def test_image_tokens_are_placed_by_our_kernel_while_generating(stf_folder, loaded, kernels, scatters):
    """transformers scatters image tokens, and so does our naive version; the kernel copies them."""
    model = load_model(stf_folder, kernels=kernels, device="cpu", dtype="float32").model
    inputs = inputs_of(loaded[1], PROMPTS[0], PICTURES[0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert any(event.name.startswith("aten::masked_scatter") for event in profile.events()) is scatters


def test_wrong_placeholder_count_is_an_error(loaded):
    model, processor = loaded
    inputs = inputs_of(processor, PROMPTS[0], PICTURES[0])
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match="4 image places for 8 vision tokens"):
        model(**inputs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_attention_and_cache_do_not_change_the_answer(stf_folder, loaded, attention, cache):
    model = AutoModelForImageTextToText.from_pretrained(stf_folder, attn_implementation=attention).eval()
    inputs = inputs_of(loaded[1], PROMPTS[0], PICTURES[0])
    expected = loaded[0].generate(**inputs, max_new_tokens=8, do_sample=False)
    found = model.generate(**inputs, max_new_tokens=8, do_sample=False, cache_implementation=cache)
    assert torch.equal(found, expected)


def test_projector_compiles_without_a_graph_break(loaded):
    projector = loaded[0].model.multi_modal_projector
    states = list(torch.randn(len(loaded[0].config.fusion_states), 1, 16, loaded[0].config.vision_config.hidden_size))
    compiled = torch.compile(projector, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(states), projector(states))


def test_whole_image_path_compiles_in_one_graph(loaded):
    model, processor = loaded
    pixels = inputs_of(processor, PROMPTS[0], PICTURES[0])["pixel_values"]

    def features(pixels):
        return model.get_image_features(pixels).pooler_output[0]

    expected = features(pixels)
    explanation = torch._dynamo.explain(features)(pixels)
    breaks = [reason for reason in explanation.break_reasons if "projector" in str(reason.user_stack)]
    assert not breaks
    torch.testing.assert_close(torch.compile(features, backend="aot_eager")(pixels), expected)


def test_placeholders_are_never_generated(loaded):
    model, processor = loaded
    banned = suppressed_ids(model.config)
    assert processor.image_token_id in banned
    inputs = inputs_of(processor, PROMPTS[0], PICTURES[0])
    head = model.lm_head.weight.detach().clone()
    try:
        with torch.no_grad():
            model.lm_head.weight[banned] = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
            favoured = model(**inputs).logits[0, -1].argmax()
        assert favoured in banned
        new = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert not set(new.tolist()) & set(banned)
        first = int(new[0])
        new = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=[first])
        assert not set(new[0, inputs["input_ids"].shape[1] :].tolist()) & {first, *banned}
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(head)


def test_block_behind_the_deepest_fusion_layer_is_not_run(loaded):
    model, processor = loaded
    last = tower_blocks(model.model.vision_tower)[-1]
    pixels = inputs_of(processor, PROMPTS[0], PICTURES[0])["pixel_values"]
    expected = model.get_image_features(pixels).pooler_output[0]
    saved = {name: value.clone() for name, value in last.state_dict().items()}
    try:
        for parameter in last.parameters():
            torch.nn.init.constant_(parameter, float("nan"))
        assert torch.equal(model.get_image_features(pixels).pooler_output[0], expected)
    finally:
        last.load_state_dict(saved)


def test_other_layers_than_the_configured_are_refused(loaded):
    with pytest.raises(FusionError, match="it cannot take -1"):
        loaded[0].get_image_features(torch.zeros(1, 3, 56, 56), vision_feature_layer=-1)


def test_pipeline(stf_folder):
    pipe = pipeline("image-text-to-text", model=str(stf_folder))
    assert isinstance(pipe.model, LlavaStfForConditionalGeneration)
    assert isinstance(pipe.processor, LlavaStfProcessor)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": PICTURES[0]}, {"type": "text", "text": "What is it?"}]}
    ]
    (result,) = pipe(text=messages, max_new_tokens=4, do_sample=False)
    inputs = inputs_of(
        pipe.processor, pipe.processor.apply_chat_template(messages, add_generation_prompt=True), PICTURES[0]
    )
    expected = pipe.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = result["generated_text"][-1]["content"]
    assert answer == pipe.processor.decode(expected, skip_special_tokens=True)


def test_lora_trains_and_merges(stf_folder, loaded):
    model = AutoModelForImageTextToText.from_pretrained(stf_folder)
    config = LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)", modules_to_save=["spatial_fusion"])
    wrapped = get_peft_model(model, config)
    inputs = inputs_of(loaded[1], PROMPTS[0], PICTURES[0])
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(3):
        loss = wrapped(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    expected = wrapped.eval()(**inputs).logits
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-4, rtol=0)
    assert type(merged) is LlavaStfForConditionalGeneration


def test_a_dora_is_read_by_peft_and_not_half(stf_folder, loaded, tmp_path):
    _, processor = loaded
    inputs = inputs_of(processor, PROMPTS[:1], PICTURES[:1])
    adapted = get_peft_model(
        LlavaStfForConditionalGeneration.from_pretrained(stf_folder),
        LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], init_lora_weights=False),
    ).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.5)
        expected = adapted(**inputs).logits
        adapted.save_pretrained(tmp_path)
        base = LlavaStfForConditionalGeneration.from_pretrained(stf_folder)
        with pytest.raises(FusionError, match="loses the magnitudes of a DoRA"):
            base.load_adapter(str(tmp_path))
        assert torch.equal(PeftModel.from_pretrained(base, tmp_path).eval()(**inputs).logits, expected)
