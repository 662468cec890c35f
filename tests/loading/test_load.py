"""`load_model`: every format, number of vision tokens and precision, and one clear sentence for everything else."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf import LlavaStfForConditionalGeneration, LlavaStfProcessor, convert_checkpoint, load_model
from llava_stf.errors import (
    CheckpointError,
    DeviceMemoryError,
    FusionError,
    LlavaStfError,
    MissingDependencyError,
    ModelNotFoundError,
)
from llava_stf.loading import load_processor
from llava_stf.loading.testing import tiny_llava_next

IMAGE = Image.radial_gradient("L").convert("RGB")
PROMPT = "USER: <image>\nWhat is it? ASSISTANT:"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAVA_STF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def inputs():
    def make(model, processor):
        return processor(images=IMAGE, text=PROMPT, return_tensors="pt").to(model.device, model.dtype)

    return make


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[:, -1, : model.config.image_token_id].float()


@pytest.mark.parametrize(
    ("vision_tokens", "tokens", "kind"),
    [
        (None, 4, LlavaStfForConditionalGeneration),
        (4, 4, LlavaStfForConditionalGeneration),
        (1, 1, LlavaStfForConditionalGeneration),
        (16, 16, LlavaForConditionalGeneration),
        ("all", 16, LlavaForConditionalGeneration),
    ],
)
def test_vision_tokens_of_a_plain_llava(vision_tokens, tokens, kind, plain_folder, inputs):
    llava = load_model(plain_folder, vision_tokens=vision_tokens)
    model, processor = llava
    assert type(model) is kind
    assert llava.vision_tokens == tokens
    assert isinstance(processor, LlavaStfProcessor)
    prompt = inputs(model, processor)
    assert (prompt["input_ids"] == model.config.image_token_id).sum() == tokens
    assert model.generate(**prompt, max_new_tokens=3).shape[1] <= prompt["input_ids"].shape[1] + 3


@pytest.mark.parametrize("vision_tokens", [0, 5, 576, -4, "some"])
def test_counts_that_no_window_gives(vision_tokens, plain_folder):
    with pytest.raises(FusionError, match="possible are 16, 4, 1"):
        load_model(plain_folder, vision_tokens=vision_tokens)


def test_a_trained_fusion_has_one_count(stf_folder):
    assert load_model(stf_folder, vision_tokens=4).vision_tokens == 4
    for wanted in (1, 16, "all"):
        with pytest.raises(FusionError, match="trained for 4 vision tokens"):
            load_model(stf_folder, vision_tokens=wanted)
    with pytest.raises(FusionError, match="projector of its own"):
        load_model(stf_folder, init="random")


def test_init(plain_folder, stf_folder, tmp_path):
    projector = load_file(stf_folder / "model.safetensors")
    projector = {name: tensor for name, tensor in projector.items() if "multi_modal_projector" in name}
    save_file(projector, tmp_path / "adapter.safetensors")
    weights = {
        init: load_model(plain_folder, init=init).model.model.multi_modal_projector.spatial_fusion.linear_1.weight
        for init in ("pool", "random", tmp_path / "adapter.safetensors")
    }
    name = next(name for name in projector if name.endswith("spatial_fusion.linear_1.weight"))
    assert torch.equal(weights[tmp_path / "adapter.safetensors"], projector[name])
    assert not torch.equal(weights["pool"], weights["random"])
    with pytest.raises(LlavaStfError, match=r"nothing\.bin"):
        load_model(plain_folder, init=tmp_path / "nothing.bin")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "float32", None])
def test_dtype(dtype, stf_folder):
    model, _ = load_model(stf_folder, dtype=dtype)
    expected = torch.float32 if dtype is None else getattr(torch, str(dtype).removeprefix("torch."))
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert not model.training


def test_attn_implementation(stf_folder):
    model, _ = load_model(stf_folder, attn_implementation="eager")
    assert model.config.text_config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "int3"}, "int3"),
        ({"device": "abacus"}, "abacus"),
        ({"quantization": "2bit"}, "2bit"),
    ],
)
def test_options_without_meaning(option, message, stf_folder):
    with pytest.raises(LlavaStfError, match=message):
        load_model(stf_folder, **option)


@pytest.fixture(scope="module")
def wide_folders(plain_folder, tmp_path_factory):
    """Models whose layers are as wide as bitsandbytes' 4-bit blocks: a plain LLaVA, a LLaVA-STF, and in tiles."""
    folders = tmp_path_factory.mktemp("wide")
    plain = shutil.copytree(plain_folder, folders / "plain")
    config = LlavaConfig.from_pretrained(plain)
    config.text_config.hidden_size, config.text_config.head_dim = 64, 32
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(plain)
    model, processor = load_model(plain, init="random")
    model.save_pretrained(folders / "stf")
    processor.save_pretrained(folders / "stf")
    for part in tiny_llava_next(width=64):
        part.save_pretrained(folders / "tiles")
    return folders


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", ["stf", "plain", "tiles"])
def test_quantization_is_of_the_language_model_alone(bits, kind, wide_folders, inputs):
    folder = wide_folders / kind
    exact, processor = load_model(folder)
    model, _ = load_model(folder, quantization=bits)
    layers = {
        name: type(module).__name__ for name, module in model.named_modules() if "Linear" in type(module).__name__
    }
    quantized = {name for name, layer in layers.items() if layer != "Linear"}
    assert quantized == {name for name in layers if ".language_model." in name}
    assert {layers[name] for name in quantized} == {{"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits]}
    for part in ("vision_tower", "multi_modal_projector"):
        former = exact.model.get_submodule(part).state_dict()
        for name, tensor in model.model.get_submodule(part).state_dict().items():
            assert torch.equal(tensor, former[name])

    prompt = inputs(exact, processor)
    expected, found = logits(exact, prompt), logits(model, prompt)
    error = (found - expected).std() / expected.std()
    assert 0 < error < {"8bit": 0.1, "4bit": 0.5}[bits]
    new = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4)[:, prompt["input_ids"].shape[1] :]
    assert new.shape == (1, 4)
    assert new.max() < model.config.image_token_id


def test_flash_attention_without_its_package(stf_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(MissingDependencyError, match=r"flash_attention_2 needs .*: pip install flash-attn"):
        load_model(stf_folder, attn_implementation="flash_attention_2")


def test_quantization_without_bitsandbytes(stf_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llava-stf\[quantization\]'"):
        load_model(stf_folder, quantization="4bit")


def test_the_authors_format_is_converted_once(stf_folder, tmp_path, cache, inputs):
    source = convert_checkpoint(stf_folder, tmp_path / "original", to="original", progress=False)
    first = load_model(source)
    copies = list(cache.glob("*/*/model.safetensors"))
    assert len(copies) == 1
    written = copies[0].stat().st_mtime_ns
    load_model(source)
    assert list(cache.glob("*/*/model.safetensors")) == copies
    assert copies[0].stat().st_mtime_ns == written
    exact, processor = load_model(stf_folder)
    prompt = inputs(exact, processor)
    assert torch.equal(logits(exact, prompt), logits(first.model, prompt))

    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] *= 2
    save_file(tensors, source / "model.safetensors")
    changed = load_model(source)
    torch.testing.assert_close(logits(changed.model, prompt), 2 * logits(exact, prompt))
    assert len(list(cache.glob("*/*/model.safetensors"))) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named(name, stf_folder, tmp_path):
    folder = shutil.copytree(stf_folder, tmp_path / "model")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
        load_model(folder)


def test_a_folder_of_checkpoints_names_one(stf_folder, tmp_path):
    shutil.copytree(stf_folder, tmp_path / "checkpoint-10")
    with pytest.raises(CheckpointError, match="subfolder checkpoint-10 may be meant"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", [None, 5])
def test_what_is_no_name_of_a_model(name):
    with pytest.raises(ModelNotFoundError, match="named by a path or a hub id"):
        load_model(name)


@pytest.mark.parametrize("files", ["tokenizer*", "processor_config.json"])
def test_a_checkpoint_without_tokenizer_loads_but_cannot_be_asked(files, stf_folder, tmp_path):
    folder = shutil.copytree(stf_folder, tmp_path / "model")
    for file in folder.glob(files):
        file.unlink()
    llava = load_model(folder)
    assert llava.processor is None
    with pytest.raises(CheckpointError, match="without a tokenizer"):
        llava.ask(IMAGE, "What?")


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing.here"])
def test_an_unknown_hub_id_while_offline(name):
    with pytest.raises(ModelNotFoundError, match=f"No model '{name}'.*offline.*download") as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./missing", "missing", "/no/such/folder", "a/b/c", "~/nothing-here"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        load_model(name)


def test_a_model_in_the_hub_cache_loads_offline(stf_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(stf_folder, repository / "snapshots" / commit / "inner")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert load_model("somebody/model", subfolder="inner").vision_tokens == 4
    assert load_model("somebody/model", subfolder="inner", revision=commit).vision_tokens == 4
    with pytest.raises(ModelNotFoundError, match="no subfolder 'outer'"):
        load_model("somebody/model", subfolder="outer")
    with pytest.raises(ModelNotFoundError, match="at revision 'other'"):
        load_model("somebody/model", revision="other")


def drop(tensors):
    del tensors[next(name for name in tensors if name.endswith("mlp.up_proj.weight"))]


def reshape(tensors):
    name = next(name for name in tensors if name.endswith("mlp.up_proj.weight"))
    tensors[name] = tensors[name][:-1].clone()


def add(tensors):
    tensors["language_model.model.layers.0.mlp.other_proj.weight"] = torch.zeros(3)


@pytest.mark.parametrize("change", [drop, reshape, add])
@pytest.mark.parametrize("quantization", [None, "4bit"])
def test_weights_that_do_not_fit_are_named(change, quantization, stf_folder, tmp_path):
    folder = shutil.copytree(stf_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="other_proj" if change is add else "up_proj"):
        load_model(folder, quantization=quantization)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "generation_config.json"]
)
def test_truncated_files_are_named(file, stf_folder, tmp_path):
    folder = shutil.copytree(stf_folder, tmp_path / "model")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


def test_a_tokenizer_of_another_model_is_noticed(stf_folder, tmp_path):
    folder = shutil.copytree(stf_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_index": 7}))
    with pytest.raises(CheckpointError, match="as id"):
        load_model(folder)


@pytest.mark.parametrize("kind", [Path, str], ids=["Path", "str"])
def test_a_path_is_never_a_bundled_model(kind, plain_folder, tmp_path, monkeypatch):
    shutil.copytree(plain_folder, tmp_path / "tiny-full")
    monkeypatch.chdir(tmp_path)
    name = Path("tiny-full") if kind is Path else "./tiny-full"
    llava = load_model(name)
    assert (llava.vision_tokens, llava.model.config.vision_config.hidden_size) == (4, 16)
    assert load_processor(name).fusion_window == 2
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        load_model(Path("tiny"))


def test_a_folder_in_the_shade_of_a_bundled_model_is_named(plain_folder, tmp_path, monkeypatch, caplog):
    shutil.copytree(plain_folder, tmp_path / "tiny-full")
    monkeypatch.chdir(tmp_path)
    assert load_model("tiny-full").vision_tokens == 64
    assert "'./tiny-full'" in caplog.text


def test_subfolder_and_revision_of_a_local_folder(stf_folder):
    assert load_model(stf_folder.parent, subfolder=stf_folder.name).vision_tokens == 4
    with pytest.raises(LlavaStfError, match="no revision 'main'"):
        load_model(stf_folder, revision="main")
    with pytest.raises(LlavaStfError, match="neither subfolder nor revision"):
        load_model("tiny", revision="main")


def test_a_device_without_room_is_no_damaged_checkpoint(stf_folder, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", full)
    with pytest.raises(DeviceMemoryError, match=r"does not fit into the memory of cpu.*CUDA out of memory") as caught:
        load_model(stf_folder, device="cpu")
    assert not isinstance(caught.value, CheckpointError)


def test_the_lora_folder_of_another_tool_is_told(stf_folder, tmp_path):
    save_file({"base_model.model.model.layers.0.lora_A.weight": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}')
    (tmp_path / "config.json").write_text('{"model_type": "llava", "mm_vision_tower": "openai/clip"}')
    torch.save({}, tmp_path / "non_lora_trainables.bin")
    with pytest.raises(CheckpointError, match=r"LoRA weights.*merge"):
        load_model(tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_damaged_shard_is_named(shards, stf_folder, tmp_path):
    model, processor = load_model(stf_folder)
    model.save_pretrained(tmp_path, max_shard_size="5MB" if shards == 1 else "60KB")
    processor.save_pretrained(tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=file.name):
        load_model(tmp_path)
