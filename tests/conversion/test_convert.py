"""Original checkpoints of any size convert to models that compute the same, and back to the same bits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_stf import LlavaStfForConditionalGeneration, convert_checkpoint, load_model
from llava_stf.errors import CheckpointError, FusionError, LlavaStfError, ModelNotFoundError
from llava_stf.models.llava_stf import keys

BEFORE, AFTER = [1, 5, 17, 80], [33, 4, 9]

SIZES = {
    "four states, window 3": {},
    "eight states, window 2": {
        "layers": (-2, 21, 18, 15, 12, 9, 6, 3), "depth": 24, "window": 2, "act": "quick_gelu", "vocab": 126,
    },
    "default of a shallow tower, window 1": {"layers": (-2, 3), "depth": 6, "window": 1, "grid": 5, "hidden": 32},
    "eight states of a deeper tower": {"layers": (-2, 21, 18, 15, 12, 9, 6, 3), "depth": 27, "width": 24},
    "plain LLaVA": {"plain": True, "depth": 4, "grid": 3},
}  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_sizes_are_read_from_the_files(sizes, original_class, logits_of, tmp_path):
    original = original_class(**sizes)
    convert_checkpoint(original.write(tmp_path / "src"), tmp_path / "dst", progress=False)
    model, processor = load_model(tmp_path / "dst", vision_tokens="all" if original.plain else None, device="cpu")

    tokens = original.grid**2 if original.plain else (original.grid // original.window) ** 2
    assert model.config.image_seq_length == tokens
    assert isinstance(model, LlavaStfForConditionalGeneration) is not original.plain
    assert model.config.image_token_id == original.vocab
    assert len(model.lm_head.weight) % 64 == 0
    assert processor is None
    expected = original.logits(original.pixels(), BEFORE, AFTER)
    found = logits_of(model, original.pixels(), BEFORE, AFTER)[:, : original.vocab]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pickle", [False, True], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("tower", [False, True], ids=["tower outside", "tower inside"])
@pytest.mark.parametrize("shards", [1, 3])
def test_all_containers_give_the_same_folder(pickle, tower, shards, original_class, tmp_path):
    original = original_class.small(dtype=torch.bfloat16)
    convert_checkpoint(original.write(tmp_path / "one"), tmp_path / "expected", progress=False)
    source = original.write(tmp_path / "src", tower=tower, shards=shards, pickle=pickle)
    convert_checkpoint(source, tmp_path / "dst", progress=False)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "dst"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (tmp_path / "expected" / "config.json").read_text() == (tmp_path / "dst" / "config.json").read_text()


@pytest.mark.parametrize("sizes", [{"depth": 18}, {"plain": True, "depth": 3}], ids=["STF", "plain"])
def test_there_and_back_keeps_every_bit(sizes, original_class, tmp_path):
    original = original_class(dtype=torch.bfloat16, **sizes)
    source = original.write(tmp_path / "src")
    tensors = original.tensors()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    tensors["model.image_newline"] = torch.ones(48)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert_checkpoint(source, tmp_path / "hf", progress=False)
    convert_checkpoint(tmp_path / "hf", tmp_path / "back", to="original", progress=False)

    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == original.tensors().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in original.tensors().items())
    config, former = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", source))
    changed = {name for name in former if name != "mm_vision_tower" and config[name] != former[name]}
    assert not changed
    # ... and what was written is read again, tower folder included
    convert_checkpoint(tmp_path / "back", tmp_path / "again", progress=False)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_new_vocabulary_rows_are_the_mean_and_placeholders_are_never_generated(original_class, tmp_path):
    original = original_class.small()
    convert_checkpoint(original.write(tmp_path / "src"), tmp_path / "dst", progress=False)
    tensors = load_file(tmp_path / "dst" / "model.safetensors")
    head = tensors["language_model.lm_head.weight"]
    assert head.shape == (128, 48)
    torch.testing.assert_close(head[90:], head[:90].mean(0, keepdim=True).expand(38, -1))
    generation = json.loads((tmp_path / "dst" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [90, 91]
    assert generation.get("do_sample", False) is False


def test_generation_settings_of_the_trainer_are_made_greedy(original_class, tmp_path):
    source = original_class.small().write(tmp_path / "src")
    settings = {"do_sample": True, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 2, "max_length": 99}
    (source / "generation_config.json").write_text(json.dumps(settings))
    convert_checkpoint(source, tmp_path / "dst", progress=False)
    written = json.loads((tmp_path / "dst" / "generation_config.json").read_text())
    assert written.get("do_sample", False) is False
    assert "temperature" not in written
    assert (written["eos_token_id"], written["max_length"]) == (2, 99)


@pytest.mark.parametrize("form", ["authors'", "PEFT's", "public"])
@pytest.mark.parametrize("base_kind", ["llama", "original", "hf"])
def test_a_projector_file_on_its_base_is_the_whole_checkpoint(form, base_kind, original_class, logits_of, tmp_path):
    whole = original_class.small()
    base = original_class.small(plain=True)
    folder = base.write(tmp_path / "base")
    if base_kind == "llama":
        tensors = {name: tensor for name, tensor in base.tensors().items() if "mm_" not in name and "tower" not in name}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = {name: value for name, value in base.config().items() if not name.startswith("mm_")}
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    if base_kind == "hf":
        convert_checkpoint(folder, tmp_path / "hf", progress=False)
    adapter = tmp_path / ("adapter.safetensors" if form == "public" else "mm_projector.bin")
    if form == "public":
        table = keys.original_table(whole.projector)
        save_file({keys.rename(name, table): tensor for name, tensor in whole.projector.items()}, adapter)
    else:
        prefix = "base_model.model." if form == "PEFT's" else ""
        torch.save({prefix + name: tensor for name, tensor in whole.projector.items()}, adapter)
    convert_checkpoint(
        adapter,
        tmp_path / "dst",
        base=tmp_path / "hf" if base_kind == "hf" else folder,
        vision_tower=tmp_path / "base" / "tower" if base_kind == "llama" else None,
        progress=False,
    )
    model, _ = load_model(tmp_path / "dst", device="cpu")
    found = logits_of(model, whole.pixels(), BEFORE, AFTER)[:, :90]
    torch.testing.assert_close(found, whole.logits(whole.pixels(), BEFORE, AFTER), atol=1e-4, rtol=0)


def test_a_projector_file_needs_a_base(original_class, tmp_path):
    torch.save(original_class.small().projector, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="give the model it was trained on as base"):
        convert_checkpoint(tmp_path / "mm_projector.bin", tmp_path / "dst")
    with pytest.raises(CheckpointError, match="load its base model with init"):
        load_model(tmp_path / "mm_projector.bin")


def test_fusion_layers_that_no_file_tells_are_asked_for(original_class, logits_of, tmp_path):
    original = original_class(layers=(-2, 10, 1), depth=12)
    source = original.write(tmp_path / "src")
    with pytest.raises(CheckpointError, match="give them as fusion_layers"):
        convert_checkpoint(source, tmp_path / "dst", progress=False)
    convert_checkpoint(source, tmp_path / "dst", fusion_layers=[-2, 10, 1], progress=False)
    model, _ = load_model(tmp_path / "dst", device="cpu")
    found = logits_of(model, original.pixels(), BEFORE, AFTER)[:, :90]
    torch.testing.assert_close(found, original.logits(original.pixels(), BEFORE, AFTER), atol=1e-4, rtol=0)
    with pytest.raises(CheckpointError, match="stores no list of fusion layers"):
        convert_checkpoint(tmp_path / "dst", tmp_path / "back", to="original", progress=False)


def test_a_tower_may_be_a_whole_clip_elsewhere(original_class, tmp_path):
    original = original_class.small(extra={"mm_vision_tower": "nobody/nothing"})
    source = original.write(tmp_path / "src", tower=False)
    tower = shutil.move(source / "tower", tmp_path / "clip")
    config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config, "text_config": {}}))
    tensors = {**original.tower_tensors(), "text_model.final_layer_norm.weight": torch.ones(4)}
    save_file({**tensors, "logit_scale": torch.ones(1)}, tower / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"nobody/nothing.*--vision-tower"):
        convert_checkpoint(source, tmp_path / "dst", progress=False)
    convert_checkpoint(source, tmp_path / "dst", vision_tower=tower, progress=False)
    assert load_model(tmp_path / "dst", device="cpu").vision_tokens == 4


def test_the_known_tower_is_not_asked_for_when_its_weights_are_inside(original_class, tmp_path):
    """Its config is built in, so the wrong shapes are noticed; a download would have been reported as impossible."""
    original = original_class.small(extra={"mm_vision_tower": "openai/clip-vit-large-patch14-336"})
    with pytest.raises(CheckpointError, match="1024"):
        convert_checkpoint(original.write(tmp_path / "inside"), tmp_path / "dst", progress=False)
    with pytest.raises(ModelNotFoundError, match="clip-vit-large"):
        convert_checkpoint(original.write(tmp_path / "outside", tower=False), tmp_path / "dst", progress=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "bert"}, CheckpointError, "bert"),
        ({"model_type": None}, CheckpointError, "model type None"),
        ({"image_aspect_ratio": "anyres"}, CheckpointError, "anyres"),
        ({"mm_use_im_start_end": True}, CheckpointError, "marker tokens"),
        ({"mm_vision_tower": None}, CheckpointError, "names no vision tower"),
        ({"mm_vision_tower": "gone"}, ModelNotFoundError, "gone"),
        ({"mm_vision_select_feature": "cls_patch"}, FusionError, "class token"),
        ({"mm_vision_select_layer": -40}, FusionError, "-40"),
        ({"vocab_size": 91}, CheckpointError, r"\[90, 48\], expected \[91, 48\]"),
        ({"vocab_size": "many"}, CheckpointError, "vocab_size"),
        ({"hidden_size": 64}, CheckpointError, r"expected \[90, 64\]"),
        ({"hidden_size": "wide"}, CheckpointError, "hidden_size"),
        ({"num_attention_heads": 0}, CheckpointError, "config.json"),
        ({"num_hidden_layers": 10**9}, CheckpointError, "1000000000 language model blocks expected, weights of 2"),
    ],
)
def test_a_config_that_does_not_fit_is_named(change, error, message, original_class, tmp_path):
    source = original_class.small(extra=change).write(tmp_path / "src")
    with pytest.raises(error, match=message):
        convert_checkpoint(source, tmp_path / "dst", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_windows_that_do_not_fit_the_tower_are_refused(original_class, tmp_path):
    with pytest.raises(FusionError, match="4x4"):
        convert_checkpoint(original_class.small(grid=4).write(tmp_path / "src"), tmp_path / "dst", progress=False)
    assert not (tmp_path / "dst").exists()


def test_lora_and_language_models_are_told_apart(original_class, tmp_path):
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="merge"):
        convert_checkpoint(lora, tmp_path / "dst")
    llama = original_class.small(extra={"model_type": "llama"}).write(tmp_path / "llama")
    with pytest.raises(CheckpointError, match="language model alone"):
        convert_checkpoint(llama, tmp_path / "dst")
    with pytest.raises(CheckpointError, match="no weights"):
        convert_checkpoint(llama / "tower" / ".." / ".." / "lora" / "..", tmp_path / "dst")


def test_a_whole_model_takes_no_base(original_class, tmp_path):
    source = original_class.small().write(tmp_path / "src")
    with pytest.raises(CheckpointError, match="takes no base"):
        convert_checkpoint(source, tmp_path / "dst", base=source)
    with pytest.raises(LlavaStfError, match="'hf' or 'original'"):
        convert_checkpoint(source, tmp_path / "dst", to="gguf")


def test_options_that_nothing_would_read_are_refused(stf_folder, tmp_path):
    with pytest.raises(CheckpointError, match="takes no other"):
        convert_checkpoint(stf_folder, tmp_path / "dst", vision_tower="openai/clip-vit-base-patch32")
    with pytest.raises(CheckpointError, match="takes no fusion_layers"):
        convert_checkpoint(stf_folder, tmp_path / "dst", fusion_layers=[-2])
    with pytest.raises(LlavaStfError, match="takes no other"):
        load_model(stf_folder, vision_tower="openai/clip-vit-base-patch32")
    convert_checkpoint(stf_folder, tmp_path / "dst", to="original", vision_tower="/my/tower", progress=False)
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["mm_vision_tower"] == "/my/tower"
    assert not (tmp_path / "dst" / "clip_tower").exists()


def test_hugging_face_folders_convert_to_public_names(plain_folder, stf_folder, tmp_path):
    for folder in (plain_folder, stf_folder):
        dst = tmp_path / folder.name
        convert_checkpoint(folder, dst, progress=False)
        names = load_file(dst / "model.safetensors").keys()
        prefixes = ("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.")
        assert all(name.startswith((*prefixes, "multi_modal_projector.")) for name in names)
        before, after = (load_model(path, vision_tokens=None, device="cpu") for path in (folder, dst))
        assert all(
            torch.equal(tensor, after.model.state_dict()[name]) for name, tensor in before.model.state_dict().items()
        )
        assert type(before.processor) is type(after.processor)
