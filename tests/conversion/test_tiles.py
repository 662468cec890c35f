"""LLaVA-NeXT and LLaVA-OneVision in the original format: files written from stock models are read as these models."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlamaTokenizer

from llava_stf import load_model
from llava_stf.conversion import convert_checkpoint
from llava_stf.data.templates import template_of
from llava_stf.errors import CheckpointError
from llava_stf.inference import user_turn
from llava_stf.loading.testing import CHARACTERS, tiny_llava_next
from llava_stf.loading.testing_videos import tiny_llava_onevision
from llava_stf.models.llava_stf.conversation import render_chat

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
SPECIAL = {"llama": [], "mistral": [], "qwen2": ["<|im_start|>", "<|im_end|>"], "llama3": ["<|eot_id|>"]}
TYPES = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen", "llama3": "llava_llama"}
PROMPTS = {
    "llama": "USER: <image>\nWhat? ASSISTANT:",
    "mistral": "[INST] <image>\nWhat? [/INST]",
    "qwen2": "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}
ALL = [("next", llm) for llm in ("llama", "mistral", "llama3")] + [("onevision", "qwen2")]


def original_name(name):
    """A name in memory as the original format has it."""
    for ours, theirs in (
        ("model.language_model.", "model."),
        ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1", "model.mm_projector.0"),
        ("model.multi_modal_projector.linear_2", "model.mm_projector.2"),
    ):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


@pytest.fixture(scope="module", params=ALL, ids="-".join)
def original(request, tmp_path_factory):
    """A stock model, its processor, and the folder of the same weights in the original format."""
    return write(*request.param, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    return write("next", "mistral", tmp_path_factory.mktemp("mistral"))[-1]


def write(kind, llm, folder):
    if kind == "next":
        model, processor = tiny_llava_next(llm="mistral" if llm == "mistral" else "llama")
    else:
        model, processor = tiny_llava_onevision()
    tokenizer = LlamaTokenizer(vocab={piece: at for at, piece in enumerate(PIECES)}, merges=[], legacy=False)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[llm]})
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer)
    tensors = {original_name(name): tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:rows].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text, vision = model.config.text_config, model.config.vision_config.to_dict()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    others = ("max_position_embeddings", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id")
    config = {name: getattr(text, name) for name in (*names, *others)}
    config |= {
        "model_type": TYPES[llm], "vocab_size": rows, "rope_theta": text.rope_parameters["rope_theta"],
        "sliding_window": None, "tie_word_embeddings": False, "mm_vision_tower": "tower", "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres", "image_grid_pinpoints": model.config.image_grid_pinpoints,
    }  # fmt: skip
    preprocessor = {}
    if kind == "onevision":
        config |= {"image_aspect_ratio": model.config.vision_aspect_ratio, "image_grid_pinpoints": "(1x1),...,(3x3)"}
        vision["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tower").mkdir()
    (folder / "tower" / "config.json").write_text(json.dumps(vision))
    (folder / "tower" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return kind, llm, model, processor, folder


def image():
    generator = torch.Generator().manual_seed(0)
    return Image.fromarray(torch.randint(0, 256, (150, 70, 3), dtype=torch.uint8, generator=generator).numpy())


def test_logits_are_those_of_the_stock_model(original, monkeypatch, tmp_path):
    _, _, model, processor, folder = original
    monkeypatch.setenv("LLAVA_STF_CACHE", str(tmp_path))
    llava = load_model(folder, vision_tokens="all", dtype="float32")
    assert type(llava.model) is type(model)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    prompt = "Is it <image> or not?"
    logits = []
    for each, prepare in ((model, processor), (llava.model, llava.processor)):
        inputs = prepare(images=image(), text=prompt, return_tensors="pt")
        with torch.inference_mode():
            logits.append(each(**inputs).logits[..., :rows])
    assert logits[0].shape[1] > 40
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    fused = load_model(folder)
    assert fused.model.config.fusion_window == 2
    assert isinstance(fused.ask(image(), "What?", max_new_tokens=2), str)


def test_its_prompt_is_that_of_its_language_model_and_can_be_trained(original, tmp_path):
    kind, llm, _, _, folder = original
    convert_checkpoint(folder, tmp_path / "hf", progress=False)
    processor = load_model(tmp_path / "hf").processor
    assert render_chat(processor, [user_turn("What?", 1)]).endswith(PROMPTS[llm])
    assert template_of(processor) == ("v1" if llm == "llama" else "chat")
    assert (tuple(processor.image_processor.image_mean) == (0.5, 0.5, 0.5)) == (kind == "onevision")
    saved = json.loads((tmp_path / "hf" / "processor_config.json").read_text())
    assert saved["processor_class"] == {"next": "LlavaNextProcessor", "onevision": "LlavaOnevisionProcessor"}[kind]


def test_there_and_back_keeps_every_bit(original, tmp_path):
    _, _, _, _, folder = original
    convert_checkpoint(folder, tmp_path / "hf", progress=False)
    convert_checkpoint(tmp_path / "hf", tmp_path / "back", to="original", progress=False)
    first, back = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "back"))
    assert first.keys() == back.keys()
    assert all(torch.equal(first[name], back[name]) for name in first)
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "back"))
    free = ("mm_vision_tower", "image_grid_pinpoints", "sliding_window")
    assert {name for name in before if name not in free and before[name] != after[name]} == set()
    convert_checkpoint(tmp_path / "back", tmp_path / "again", progress=False)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mm_patch_merge_type": "spatial"}, "found 'anyres' and 'spatial'"),
        ({"image_grid_pinpoints": [[60, 112]]}, "multiples of 56"),
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints must be"),
        ({"image_aspect_ratio": "anyres_max_9"}, "of a LLaVA-NeXT is 'anyres'"),
        ({"mm_resampler_type": "spatial_pool"}, "resamples what it sees"),
        ({"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat", "model_type": "llava_qwen"}, "cuts images into"),
    ],
)
def test_what_is_read_in_no_class_is_named(mistral, change, sentence, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in mistral.iterdir():
        (copy / file.name).symlink_to(file)
    config = json.loads((mistral / "config.json").read_text()) | change
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(copy, tmp_path / "hf", progress=False)


def test_a_fused_model_has_no_original_format(tmp_path):
    model, processor = tiny_llava_next()
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    llava = load_model(tmp_path / "plain")
    llava.model.save_pretrained(tmp_path / "fused")
    llava.processor.save_pretrained(tmp_path / "fused")
    with pytest.raises(CheckpointError, match="has no llava_next_stf"):
        convert_checkpoint(tmp_path / "fused", tmp_path / "out", to="original", progress=False)
