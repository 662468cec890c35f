"""The classes that take videos, fused, against transformers' own: warm start, parity, undo, saving, asking."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llava_stf import Video, apply_pooling, apply_stf, load_model, remove_stf
from llava_stf.errors import FusionError, PromptError
from llava_stf.inference import LlavaStf
from llava_stf.loading.testing_videos import tiny_llava_next_video, tiny_llava_onevision, tiny_video_llava
from llava_stf.models.fusion.budget import num_image_tokens, num_video_tokens
from llava_stf.models.registry import FAMILIES

MODELS = {"onevision": tiny_llava_onevision, "next_video": tiny_llava_next_video, "video_llava": tiny_video_llava}
SIZES = [(80, 60), (300, 20), (56, 56), (40, 190), (500, 6)]  # width, height; thin ones among them
PROMPTS = ["<image>\nWhat?", "<image> and <video> and <image>: which is larger?", "<video><image><image>"]


def images():
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=generator) for w, h in SIZES]
    return [Image.fromarray(array.numpy()) for array in pixels]


def videos(count=2, frames=3):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (frames, 50, 70, 3), dtype=np.uint8) for _ in range(count)]


def encode(processor, prompts=PROMPTS):
    return processor(
        images=images()[: "".join(prompts).count("<image>")],
        text=prompts,
        videos=videos("".join(prompts).count("<video>")) or None,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )


def window_means(tokens, window):
    """[B, g*g, H] to [B, cells, cells, H]: the mean of the tokens that each window has, fewer at an odd edge."""
    side = int(tokens.shape[1] ** 0.5)
    grid = tokens.view(len(tokens), side, side, -1)
    starts = range(0, side, window)
    rows = [[grid[:, y : y + window, x : x + window].mean((1, 2)) for x in starts] for y in starts]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def projected(model, tower, pixels, pool=False):
    """All states of the plain model's select layer through its projector, and those of the class tokens before them."""
    layer, inner = model.config.vision_feature_layer, model.model
    state = getattr(inner, tower)(pixels, output_hidden_states=True).hidden_states[layer]
    special = state.shape[1] - (pixels.shape[-1] // 14) ** 2
    patches = state[:, special:]
    if pool:
        side = int(patches.shape[1] ** 0.5)
        grid = patches.view(len(patches), side // 2, 2, side // 2, 2, -1)
        patches = grid.mean((2, 4)).flatten(1, 2)
    return inner.multi_modal_projector(patches), inner.multi_modal_projector(state[:, :special])


def best_pinpoint(height, width, pinpoints):
    def key(point):
        scale = min(point[1] / width, point[0] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - point[0] * point[1]

    return max(pinpoints, key=key)


def tiled_by_hand(model, tiles, size, window, alone):
    """The tokens of one image that is cut into tiles."""
    side, newline, (height, width) = tiles.shape[-1], model.model.image_newline[None], size
    if not alone:
        means = window_means(projected(model, "vision_tower", tiles[:1])[0], window)
        return torch.cat([means.flatten(0, 2), newline])
    best = best_pinpoint(height, width, model.config.image_grid_pinpoints)
    rows, columns = best[0] // side, best[1] // side
    means = window_means(projected(model, "vision_tower", tiles[: 1 + rows * columns])[0], window)
    lines = [torch.cat([means[1 + r * columns + c] for c in range(columns)], dim=1) for r in range(rows)]
    full = torch.cat(lines, dim=0)
    if width / height > full.shape[1] / full.shape[0]:
        used = int(round(height * (full.shape[1] / width), 7))
        pad = (full.shape[0] - used) // 2
        full = full[pad : full.shape[0] - pad] if full.shape[0] > 2 * pad else full[pad][None]
    else:
        used = int(round(width * (full.shape[0] / height), 7))
        pad = (full.shape[1] - used) // 2
        full = full[:, pad : full.shape[1] - pad] if full.shape[1] > 2 * pad else full[:, pad][:, None]
    most = getattr(model.config, "vision_aspect_ratio", None)
    if most is not None:
        ratio = (full.shape[0] * full.shape[1] / (int(most[-1]) * means.shape[1] ** 2)) ** 0.5
        if ratio > 1.1:
            shape = [max(1, int(full.shape[0] // ratio)), max(1, int(full.shape[1] // ratio))]
            full = functional.interpolate(full.permute(2, 0, 1)[None], shape, mode="bilinear")[0].permute(1, 2, 0)
    pieces = [means[0].flatten(0, 1)]
    for row in full:
        pieces += [row, newline]
    return torch.cat(pieces)


def images_by_hand(name, model, inputs, window):
    if name == "video_llava":
        (pixels,) = (inputs[key] for key in ("pixel_values", "pixel_values_images") if key in inputs)
        return list(window_means(projected(model, "image_tower", pixels)[0], window).flatten(1, 2))
    numbers = inputs["batch_num_images"].tolist() if name == "onevision" else [1] * len(inputs["image_sizes"])
    alone = [number == 1 for number in numbers for _ in range(number)]
    sizes = inputs["image_sizes"].tolist()
    return [
        tiled_by_hand(model, tiles, size, window, one)
        for tiles, size, one in zip(inputs["pixel_values"], sizes, alone, strict=True)
    ]


def videos_by_hand(name, model, pixels, window, pool=True):
    clips = []
    for frames in pixels:
        if name == "video_llava":
            tokens, special = projected(model, "video_tower", frames)
            clips.append(torch.cat([special, window_means(tokens, window).flatten(1, 2)], 1).flatten(0, 1))
            continue
        means = window_means(projected(model, "vision_tower", frames, pool and name == "next_video")[0], window)
        if name == "next_video":
            clips.append(means.flatten(0, 2))
            continue
        if pool:
            shape = [-(-means.shape[1] // 2)] * 2
            means = functional.interpolate(means.permute(0, 3, 1, 2), shape, mode="bilinear").permute(0, 2, 3, 1)
        clips.append(torch.cat([means.flatten(0, 2), model.model.image_newline[None]]))
    return clips


@pytest.mark.parametrize("pool_frames", [True, False])
@pytest.mark.parametrize("apply", [apply_stf, apply_pooling])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_warm_start_is_the_mean_of_the_plain_projector(name, apply, pool_frames):
    model, processor = MODELS[name]()
    inputs = encode(processor)
    newline = getattr(model.model, "image_newline", torch.empty(0)).clone()
    seen = images_by_hand(name, model, inputs, 2)
    clips = videos_by_hand(name, model, inputs["pixel_values_videos"], 2, pool_frames)
    if name == "video_llava" and not pool_frames:
        with pytest.raises(FusionError, match="a video_llava does not"):
            apply(model, processor, pool_frames=False)
        return
    apply(model, processor, pool_frames=pool_frames)
    fused = encode(processor)
    outputs = model(**fused)
    found = outputs.image_outputs.pooler_output if "image_outputs" in outputs else [outputs.image_hidden_states]
    shown = outputs.video_outputs.pooler_output if "video_outputs" in outputs else [outputs.video_hidden_states]
    # Two products of 16 to 64 terms in float32, in another order.
    torch.testing.assert_close(torch.cat(list(found)), torch.cat(seen), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(list(shown)), torch.cat(clips), atol=1e-5, rtol=1e-5)
    assert torch.equal(getattr(model.model, "image_newline", newline), newline)
    assert processor.num_video_tokens([3, 3]) == num_video_tokens(model.config, [3, 3]) == [len(clip) for clip in clips]
    assert len(model.config.fusion_states) == (1 if apply is apply_pooling else 3 if name != "onevision" else 2)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_one_patch_windows_are_the_plain_model(name):
    model, processor = MODELS[name]()
    inputs = encode(processor)
    logits = model(**inputs).logits
    answer = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=[0])
    apply_pooling(model, processor, window=1)
    ours = encode(processor)
    assert all(torch.equal(ours[key], inputs[key]) for key in inputs)
    torch.testing.assert_close(model(**ours).logits, logits, atol=1e-5, rtol=1e-5)
    ids = model.generate(**ours, max_new_tokens=6, do_sample=False, suppress_tokens=[0])
    suppressed = {model.config.image_token_id, model.config.video_token_id}
    assert torch.equal(ids, answer) or suppressed & set(answer[:, -6:].flatten().tolist())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_undo_is_bit_identical(name):
    model, processor = MODELS[name]()
    stock, attributes = type(model), dict(vars(processor))
    inputs = encode(processor)
    logits, weights = model(**inputs).logits, {k: v.clone() for k, v in model.state_dict().items()}
    apply_stf(model, processor)
    assert type(model) is FAMILIES[stock].model
    remove_stf(model, processor)
    assert type(model) is stock
    assert vars(processor) == attributes
    again = encode(processor)
    assert all(torch.equal(again[key], inputs[key]) for key in inputs)
    assert torch.equal(model(**again).logits, logits)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_rows_of_a_left_padded_batch_are_as_alone(name, attention):
    model, processor = MODELS[name]()
    apply_stf(model, processor)
    model.set_attn_implementation(attention)
    batch = model.generate(**encode(processor), max_new_tokens=5, do_sample=False)[:, -5:]
    static = model.generate(**encode(processor), max_new_tokens=5, do_sample=False, cache_implementation="static")
    assert torch.equal(static[:, -5:], batch)
    left, clips = images(), videos()
    for row, prompt in enumerate(PROMPTS):
        own, left = left[: prompt.count("<image>")], left[prompt.count("<image>") :]
        shown, clips = clips[: prompt.count("<video>")], clips[prompt.count("<video>") :]
        alone = processor(images=own, text=prompt, videos=shown or None, return_tensors="pt")
        assert torch.equal(model.generate(**alone, max_new_tokens=5, do_sample=False)[0, -5:], batch[row])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_several_windows_in_one_model(name):
    grid = 6 if name == "onevision" else 8 if name == "next_video" else 4
    model, processor = MODELS[name](grid=grid)
    wide = 3 if name == "onevision" else 4
    inputs = encode(processor)
    expected = images_by_hand(name, model, inputs, wide)
    clips = videos_by_hand(name, model, inputs["pixel_values_videos"], wide)
    apply_stf(model, processor, window=[2, wide])
    count = (grid // wide) ** 2
    options = {"images": images(), "text": PROMPTS, "videos": videos(), "return_tensors": "pt", "padding": True}
    asked = processor(**options, vision_tokens=count)
    places = (asked.input_ids == model.config.image_token_id).sum()
    assert int(places) == sum(map(len, expected))
    assert int((asked.input_ids == model.config.video_token_id).sum()) == sum(map(len, clips))
    outputs = model(**asked)
    shown = outputs.video_outputs.pooler_output if "video_outputs" in outputs else [outputs.video_hidden_states]
    torch.testing.assert_close(torch.cat(list(shown)), torch.cat(clips), atol=1e-5, rtol=1e-5)
    assert model.generate(**asked, max_new_tokens=2).shape[0] == 3


@pytest.fixture(scope="module", params=MODELS)
def llava(request, tmp_path_factory):
    """A plain model saved, and read again on a quarter of its tokens."""
    folder = tmp_path_factory.mktemp(request.param)
    for part in MODELS[request.param]():
        part.save_pretrained(folder)
    return load_model(folder)


def test_saved_and_loaded_again(llava, tmp_path):
    family = next(family for family in FAMILIES.values() if isinstance(llava.model, family.model))
    llava.model.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again.model) is family.model
    auto = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(auto) is family.model
    assert type(AutoConfig.from_pretrained(tmp_path)) is family.config
    assert type(AutoProcessor.from_pretrained(tmp_path)) is family.processor
    inputs = encode(llava.processor)
    with torch.no_grad():
        expected = llava.model(**inputs).logits
        assert torch.equal(again.model(**encode(again.processor)).logits, expected)
        assert torch.equal(auto(**inputs).logits, expected)


def test_asking(llava):
    clip = Video(videos(1)[0], frames=3)
    pairs = [(images()[:1], "What?"), ([*images()[1:3], clip], "And <image>, <video> or <image>?"), (clip, "Which?")]
    alone = [llava.ask(*pair, max_new_tokens=5) for pair in pairs]
    assert llava.ask_batch(pairs, max_new_tokens=5) == alone
    assert "".join(llava.stream(*pairs[1], max_new_tokens=5)) == alone[1]
    assert llava.ask(videos(1)[0], "Which?", max_new_tokens=5) == alone[2]
    chat = llava.chat(images()[:1])
    assert chat.ask("What?", max_new_tokens=5) == alone[0]
    chat.add_image(videos(1)[0])
    chat.ask("And this?", max_new_tokens=3)
    assert len(chat.images) == 2


def test_more_frames_than_fit_says_how_many_do(llava, monkeypatch):
    monkeypatch.setattr(llava.model.config.text_config, "max_position_embeddings", 120)
    long = videos(1, frames=130)[0][:, :20, :20]
    with pytest.raises(PromptError, match="frames of each would fit") as caught:
        llava.ask(Video(long, frames=130), "What?")
    fitting = int(str(caught.value).split(" frames of each")[0].split()[-1])
    assert 1 < fitting < 130
    assert llava.ask(Video(long, frames=fitting), "What?", max_new_tokens=1) is not None
    with pytest.raises(PromptError, match=f"{fitting} frames of each"):
        llava.ask(Video(long, frames=fitting + 1), "What?")


def test_wrong_number_of_video_places_is_refused(llava):
    inputs = encode(llava.processor, PROMPTS[1:])
    ids = torch.where(inputs.input_ids == llava.model.config.video_token_id, 5, inputs.input_ids)
    with pytest.raises(ValueError, match="0 image places for"):
        llava.model.generate(**{**inputs, "input_ids": ids})
    with pytest.raises(PromptError, match="Expected one <video> marker per video, found 1 markers in the text and 0"):
        llava.processor(text="<video>What?")


def test_videos_of_different_numbers_of_frames_are_refused_in_one_batch(llava):
    short, long = videos(1, frames=2)[0], videos(1, frames=4)[0]
    with pytest.raises(PromptError, match="found 2, 4"):
        llava.ask_batch([(short, "a?"), (long, "b?")])


@pytest.mark.parametrize("name", MODELS)
def test_lora_trains_the_projector_and_merges(name):
    from peft import LoraConfig, get_peft_model

    model, processor = MODELS[name]()
    apply_stf(model, processor)
    inputs = encode(processor)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["multi_modal_projector"])
    )
    places = {model.config.image_token_id, model.config.video_token_id}
    labels = inputs.input_ids.clone().apply_(lambda token: -100 if token in places else token)
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = wrapped(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert wrapped.merge_and_unload().eval().generate(**inputs, max_new_tokens=2).shape[0] == 3


def test_a_model_of_images_refuses_a_video(plain_folder):
    llava = load_model(plain_folder)
    with pytest.raises(FusionError, match="takes images alone; videos are for LLaVA-OneVision, LLaVA-NeXT-Video and"):
        llava.ask(videos(1)[0], "What?")
    with pytest.raises(PromptError, match="takes images alone"):
        llava.processor(text="<image>", videos=videos(1))
    with pytest.raises(FusionError, match="takes images alone"):
        llava.model.generate(input_ids=torch.tensor([[1, 2]]), pixel_values_videos=torch.zeros(1, 1, 3, 56, 56))


def test_window_that_the_pooler_does_not_allow():
    model, processor = tiny_llava_next_video()
    with pytest.raises(FusionError, match="does not divide the 2x2 patches that LLaVA-NeXT-Video's pooler leaves"):
        apply_stf(model, processor, window=4)
    apply_stf(model, processor, window=4, pool_frames=False)
    assert num_video_tokens(model.config, [3]) == [3]
    with pytest.raises(FusionError, match="fusion_window 3 does not divide the grid of 5x5"):
        apply_stf(*tiny_llava_onevision(), window=3)
    with pytest.raises(FusionError, match="anyres_max_N"):
        apply_stf(*tiny_llava_onevision(vision_aspect_ratio="pad"))


def test_several_images_of_a_onevision_prompt_are_shown_whole():
    model, processor = tiny_llava_onevision()
    apply_stf(model, processor)
    pair, alone = images()[:2], images()[0]
    for nested in (pair, [pair]):
        inputs = processor(images=nested, text="<image><image>", return_tensors="pt")
        assert inputs.batch_num_images.tolist() == [2]
        assert int((inputs.input_ids == model.config.image_token_id).sum()) == 2 * (9 + 1)
    single = processor(images=alone, text="<image>", return_tensors="pt")
    sizes = [(alone.height, alone.width)]
    assert int((single.input_ids == model.config.image_token_id).sum()) == num_image_tokens(model.config, sizes)[0]
    with pytest.raises(PromptError, match="batch_num_images"):
        model(**{**inputs, "batch_num_images": torch.tensor([3])})
    with pytest.raises(PromptError, match="takes image_sizes"):
        model.generate(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values)
    assert LlavaStf(model, processor).ask(pair, "Same?", max_new_tokens=2) is not None


def test_saved_with_code_is_read_without_the_package(tmp_path):
    clip, expected = videos(1)[0], []
    np.save(tmp_path / "clip.npy", clip)
    for name, made in MODELS.items():
        model, processor = made()
        apply_stf(model, processor)
        for part in (model, processor):
            part.save_pretrained(tmp_path / name, with_code=True)
        with torch.no_grad():
            inputs = processor(images=images()[:1], videos=[clip], text="<image><video>Hi", return_tensors="pt")
            expected.append(model(**inputs).logits.double().sum().item())
    images()[0].save(tmp_path / "image.png")
    code = (
        "import sys, torch; sys.modules.update(llava_stf=None, llava_stf_kernels=None, av=None)\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "from PIL import Image; import numpy\n"
        "folder = sys.argv[1]; image = [Image.open(folder + '/image.png')]; clip = [numpy.load(folder + '/clip.npy')]\n"
        "for name in sys.argv[2:]:\n"
        "    model = AutoModelForImageTextToText.from_pretrained(f'{folder}/{name}', trust_remote_code=True)\n"
        "    processor = AutoProcessor.from_pretrained(f'{folder}/{name}', trust_remote_code=True, backend='pil')\n"
        "    inputs = processor(images=image, videos=clip, text='<image><video>Hi', return_tensors='pt')\n"
        "    with torch.no_grad(): print(model(**inputs).logits.double().sum().item())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *MODELS]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    # Another order of sums.
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected, rel=1e-4)
