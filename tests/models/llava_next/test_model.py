"""LLaVA-NeXT on fused tokens against transformers' own: exact warm start, parity, undo, saving, asking."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaNextForConditionalGeneration

from llava_stf import (
    LlavaNextStfConfig,
    LlavaNextStfForConditionalGeneration,
    LlavaNextStfProcessor,
    apply_pooling,
    apply_stf,
    load_model,
    remove_stf,
)
from llava_stf.errors import CheckpointError, FusionError, LlavaStfError, PromptError
from llava_stf.loading.testing import tiny_llava_next
from llava_stf.reduction import METHODS, apply_reduction

SIZES = [(80, 60), (300, 20), (56, 56), (40, 190), (500, 6)]  # width, height; thin ones among them
PROMPTS = ["[INST] <image>\nWhat? [/INST]", "<image> and <image>: which is larger?", "<image><image>"]


def images():
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=generator) for w, h in SIZES]
    return [Image.fromarray(array.numpy()) for array in pixels]


def encode(processor):
    return processor(images=images(), text=PROMPTS, return_tensors="pt", padding=True, padding_side="left")


def pooled_by_hand(model, pixel_values, image_sizes, window):
    """Means over windows of the plain projector's outputs, packed by rows and columns of single tokens."""
    side, patch = model.config.vision_config.image_size, model.config.vision_config.patch_size
    grid, cells = side // patch, side // patch // window
    out = []
    for tiles, (height, width) in zip(pixel_values, image_sizes.tolist(), strict=True):
        best = best_pinpoint(height, width, model.config.image_grid_pinpoints)
        rows, columns = best[0] // side, best[1] // side
        state = model.model.vision_tower(tiles[: 1 + rows * columns], output_hidden_states=True).hidden_states[-2]
        tokens = model.model.multi_modal_projector(state[:, 1:])
        means = tokens.view(-1, cells, window, cells, window, tokens.shape[-1]).mean((2, 4))
        assert grid == cells * window
        full = torch.cat(
            [torch.cat([means[1 + r * columns + c] for c in range(columns)], dim=1) for r in range(rows)], dim=0
        )
        if width / height > columns / rows:
            used = int(round(height * (full.shape[1] / width), 7))
            pad = (full.shape[0] - used) // 2
            full = full[pad : full.shape[0] - pad] if used else full[full.shape[0] // 2][None]
        else:
            used = int(round(width * (full.shape[0] / height), 7))
            pad = (full.shape[1] - used) // 2
            full = full[:, pad : full.shape[1] - pad] if used else full[:, full.shape[1] // 2][:, None]
        pieces = [means[0].flatten(0, 1)]
        for row in full:
            pieces += [row, model.model.image_newline[None]]
        out.append(torch.cat(pieces))
    return out


def best_pinpoint(height, width, pinpoints):
    def key(point):
        scale = min(point[1] / width, point[0] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - point[0] * point[1]

    return max(pinpoints, key=key)


@pytest.mark.parametrize("window", [2, 4])
@pytest.mark.parametrize("apply", [apply_stf, apply_pooling])
@torch.no_grad()
def test_warm_start_is_the_mean_of_the_plain_projector(apply, window):
    model, processor = tiny_llava_next()
    newline = model.model.image_newline.clone()
    pixel_values, sizes = (encode(processor)[name] for name in ("pixel_values", "image_sizes"))
    expected = pooled_by_hand(model, pixel_values, sizes, window)
    apply(model, processor, window=window)
    found = model.get_image_features(pixel_values, sizes).pooler_output
    assert [len(image) for image in found] == processor.num_image_tokens(sizes.tolist())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.model.image_newline, newline)
    assert len(model.config.fusion_states) == (1 if apply is apply_pooling else 3)


@pytest.mark.parametrize("llm", ["mistral", "llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_one_patch_windows_are_the_plain_model(llm):
    model, processor = tiny_llava_next(llm=llm)
    inputs = encode(processor)
    logits = model(**inputs).logits
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    apply_pooling(model, processor, window=1)
    torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), answer)
    ours = encode(processor)
    image_id = model.config.image_token_id
    assert torch.equal((ours.input_ids == image_id).sum(-1), (inputs.input_ids == image_id).sum(-1))


@torch.no_grad()
def test_undo_is_bit_identical():
    model, processor = tiny_llava_next()
    inputs = encode(processor)
    logits, weights = model(**inputs).logits, {k: v.clone() for k, v in model.state_dict().items()}
    apply_stf(model, processor)
    assert type(model) is LlavaNextStfForConditionalGeneration
    assert type(processor) is LlavaNextStfProcessor
    remove_stf(model, processor)
    assert type(model) is LlavaNextForConditionalGeneration
    again = encode(processor)
    assert all(torch.equal(again[name], inputs[name]) for name in inputs)
    assert torch.equal(model(**again).logits, logits)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_rows_of_a_left_padded_batch_are_as_alone(attention):
    model, processor = tiny_llava_next()
    apply_stf(model, processor)
    model.set_attn_implementation(attention)
    batch = model.generate(**encode(processor), max_new_tokens=6, do_sample=False)[:, -6:]
    left = images()
    for row, prompt in enumerate(PROMPTS):
        own, left = left[: prompt.count("<image>")], left[prompt.count("<image>") :]
        alone = processor(images=own, text=prompt, return_tensors="pt")
        found = model.generate(**alone, max_new_tokens=6, do_sample=False)[0, -6:]
        assert torch.equal(found, batch[row])


@torch.no_grad()
def test_cached_decoding_equals_full_passes():
    model, processor = tiny_llava_next()
    apply_stf(model, processor)
    inputs = processor(images=images()[:2], text=PROMPTS[1], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False, suppress_tokens=[])
    images_only = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    for end in range(inputs.input_ids.shape[1], ids.shape[1]):
        full = model(input_ids=ids[:, :end], attention_mask=torch.ones(1, end), **images_only).logits[0, -1]
        full[model.config.image_token_id] = -torch.inf
        assert full.argmax() == ids[0, end]


@torch.no_grad()
def test_several_windows_in_one_model():
    model, processor = tiny_llava_next()
    pixel_values, sizes = (encode(processor)[name] for name in ("pixel_values", "image_sizes"))
    expected = pooled_by_hand(model, pixel_values, sizes, 4)
    apply_stf(model, processor, window=[2, 4])
    found = model.get_image_features(pixel_values, sizes, vision_tokens=1).pooler_output
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    prompt = {"images": images()[:2], "text": PROMPTS[1], "return_tensors": "pt"}
    counts = [(processor(**prompt, vision_tokens=n).input_ids == model.config.image_token_id).sum() for n in (4, 1)]
    assert counts[0] > counts[1]
    for tokens in (4, 1):
        assert model.generate(**processor(**prompt, vision_tokens=tokens), max_new_tokens=2).shape[0] == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("next")
    model, processor = tiny_llava_next()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def llava(folder):
    return load_model(folder)


def test_plain_folder_is_patched_to_a_quarter(llava):
    assert isinstance(llava.model.config, LlavaNextStfConfig)
    assert llava.model.config.image_seq_length == 4
    assert llava.vision_tokens == 10  # a 56x56 image: 4 tokens of the base tile, 2 rows of 2 tokens and a newline


def test_all_tokens_are_the_untouched_model(folder):
    model, processor = load_model(folder, vision_tokens="all")
    assert type(model) is LlavaNextForConditionalGeneration
    inputs = encode(processor)
    stock = encode(AutoProcessor.from_pretrained(folder, backend="pil"))
    image_id = model.config.image_token_id
    assert torch.equal((inputs.input_ids == image_id).sum(-1), (stock.input_ids == image_id).sum(-1))
    pairs = [(images()[:2], "What?"), (images()[4:], "This?")]
    assert len(load_model(folder, vision_tokens="all").ask_batch(pairs, max_new_tokens=4)) == 2


def test_saved_and_loaded_again(llava, tmp_path):
    llava.model.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again.model) is LlavaNextStfForConditionalGeneration
    auto = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(auto) is LlavaNextStfForConditionalGeneration
    assert type(AutoConfig.from_pretrained(tmp_path)) is LlavaNextStfConfig
    assert type(AutoProcessor.from_pretrained(tmp_path)) is LlavaNextStfProcessor
    inputs = encode(llava.processor)
    with torch.no_grad():
        expected = llava.model(**inputs).logits
        assert torch.equal(again.model(**encode(again.processor)).logits, expected)
        assert torch.equal(auto(**inputs).logits, expected)


def test_asking(llava):
    pairs = [(images()[:1], "What?"), (images()[1:3], "And <image> or <image>?"), (images()[3:], "Which?")]
    alone = [llava.ask(*pair, max_new_tokens=6) for pair in pairs]
    assert llava.ask_batch(pairs, max_new_tokens=6) == alone
    assert "".join(llava.stream(*pairs[1], max_new_tokens=6)) == alone[1]
    chat = llava.chat(images()[:1])
    assert chat.ask("What?", max_new_tokens=6) == alone[0]
    chat.add_image(images()[1])
    chat.ask("And this?", max_new_tokens=4)
    assert len(chat.images) == 2


def test_prompt_is_that_of_the_models_template(llava):
    inputs = llava.encode(
        [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]], [images()[:1]]
    )
    text = llava.processor.tokenizer.decode([i for i in inputs.input_ids[0] if i != llava.model.config.image_token_id])
    assert "[INST]" in text
    assert "USER" not in text


def test_without_a_template_a_question_is_refused_and_a_prompt_is_not(folder):
    llava = load_model(folder)
    llava.processor.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        llava.ask(images()[:1], "What?")
    assert llava.encode(["<image>What?"], [images()[:1]]).input_ids.shape[0] == 1


def test_too_long_a_prompt_says_its_image_tokens(llava):
    many = [images()[0]] * 60
    tokens = llava.processor.num_image_tokens([(60, 80)])[0] * 60
    with pytest.raises(PromptError, match=f"{tokens} of them for 60"):
        llava.ask(many, "What?")


def test_image_sizes_are_asked_for(llava):
    inputs = encode(llava.processor)
    with pytest.raises(PromptError, match="takes image_sizes"):
        llava.model.generate(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values)
    with pytest.raises(PromptError, match="2 sizes"):
        llava.model(**{**inputs, "image_sizes": inputs.image_sizes[:2]})


def test_wrong_number_of_placeholders_is_refused(llava):
    inputs = encode(llava.processor)
    with pytest.raises(ValueError, match="image places for"):
        llava.model.generate(**{**inputs, "input_ids": inputs.input_ids[:, :-12], "attention_mask": None})


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"stf", "pool", "visionzip", "random", "divprune"}))
def test_other_reductions_are_refused(method):
    model, processor = tiny_llava_next()
    with pytest.raises(FusionError, match="cuts images into tiles"):
        apply_reduction(model, processor, method, vision_tokens=4)
    assert type(model) is LlavaNextForConditionalGeneration


@pytest.mark.parametrize("method", ["stf", "pool"])
def test_fusing_methods_by_budget(method):
    model, processor = tiny_llava_next()
    apply_reduction(model, processor, method, vision_tokens=4)
    assert model.config.fusion == method
    with pytest.raises(FusionError, match="16"):
        apply_reduction(*tiny_llava_next(), method, vision_tokens=5)


def test_unsupported_class_names_the_supported():
    with pytest.raises(FusionError, match=r"LlavaForConditionalGeneration, .* or VipLlavaForConditionalGeneration"):
        apply_stf(torch.nn.Linear(2, 2))


def test_lora_trains_the_projector_and_merges():
    from peft import LoraConfig, get_peft_model

    model, processor = tiny_llava_next()
    apply_stf(model, processor)
    inputs = encode(processor)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["multi_modal_projector"])
    )
    labels = inputs.input_ids.masked_fill(inputs.input_ids == model.config.image_token_id, -100)
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        loss = wrapped(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    merged = wrapped.merge_and_unload().eval()
    assert type(merged) is LlavaNextStfForConditionalGeneration
    assert merged.generate(**inputs, max_new_tokens=2).shape[0] == 3


def test_compile_runs_eagerly_and_says_so(folder, caplog):
    llava = load_model(folder, compile=True)
    assert "images in tiles" in caplog.text
    assert llava.ask(images()[:1], "What?", max_new_tokens=2) == load_model(folder).ask(
        images()[:1], "What?", max_new_tokens=2
    )


def test_what_is_for_squares_alone_says_so(folder, tmp_path):
    from llava_stf.analysis.visualise import visualise
    from llava_stf.serving.vllm import vllm_command

    llava = load_model(folder)
    with pytest.raises(FusionError, match="cuts images into tiles"):
        visualise(llava, images()[0])
    with pytest.raises(LlavaStfError, match="plugin for vLLM"):
        vllm_command(str(folder), {})


def test_command_line_asks(folder, tmp_path):
    from typer.testing import CliRunner

    from llava_stf.cli import app

    images()[0].save(tmp_path / "a.png")
    command = ["ask", str(tmp_path / "a.png"), "What?", "--model", str(folder), "--max-new-tokens", "3"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output


def test_missing_newline_is_an_incomplete_checkpoint(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    newline = next(name for name in weights if name.endswith("image_newline"))
    save_file({k: v for k, v in weights.items() if k != newline}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="image_newline"):
        load_model(tmp_path)


def test_saved_with_code_is_read_without_the_package(llava, tmp_path):
    llava.model.save_pretrained(tmp_path, with_code=True)
    llava.processor.save_pretrained(tmp_path, with_code=True)
    code = (
        "import sys, torch; sys.modules['llava_stf'] = None; sys.modules['llava_stf_kernels'] = None\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True, backend='pil')\n"
        "from PIL import Image\n"
        "inputs = processor(images=[Image.new('RGB', (80, 60))], text='<image>Hi', return_tensors='pt')\n"
        "print(type(model).__name__, model(**inputs).logits.double().sum().item())\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    name, logits = done.stdout.split()
    inputs = llava.processor(images=[Image.new("RGB", (80, 60))], text="<image>Hi", return_tensors="pt")
    with torch.no_grad():
        expected = llava.model(**inputs).logits.double().sum().item()
    assert name == "LlavaNextStfForConditionalGeneration"
    assert float(logits) == pytest.approx(expected, rel=1e-4)  # another order of sums
