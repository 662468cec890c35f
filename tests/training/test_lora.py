"""LoRA and QLoRA: what is trained, that the result loads and merges to the same model, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_stf import load_model
from llava_stf.cli import main as cli
from llava_stf.errors import CheckpointError, LlavaStfError, ModelNotFoundError
from llava_stf.io.runs import save_model, save_whole
from llava_stf.loading.merge import merge_lora
from llava_stf.training.config import from_values
from llava_stf.training.finetune import finetune, load_start
from llava_stf.training.lora import add_lora, save_adapter
from llava_stf.training.optim import part_of

QUESTION = "What colour is it?"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def train(base, data_folder, output, **options):
    values = {
        "base": str(base),
        "data": str(data_folder / "instruct.json"),
        "output": str(output),
        "per_device_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "projector_learning_rate": 1e-3,
        "num_workers": 0,
        "cpu_threads": 1,
        "lora_rank": 4,
        "bf16": False,
    }
    finetune(from_values({**values, **options}))
    return output


@pytest.fixture(scope="module")
def adapter(llava_base, data_folder, tmp_path_factory):
    """The result of a LoRA run on a plain LLaVA with random weights."""
    return train(llava_base, data_folder, tmp_path_factory.mktemp("lora") / "out")


@pytest.fixture
def copy(adapter, tmp_path):
    return Path(shutil.copytree(adapter, tmp_path / "copy"))


def inputs_for(llava, data_folder):
    from llava_stf.images import load_image

    prompt = llava.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    )
    return llava.processor(images=load_image(data_folder / "red.png"), text=prompt, return_tensors="pt")


@torch.inference_mode()
def logits(llava, data_folder):
    return llava.model(**inputs_for(llava, data_folder)).logits


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_no_checkpoint_looks_its_base_up_on_the_hub(data_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *names: asked.append(names))
    train("tiny-full", data_folder, tmp_path / "out", max_steps=1, vision_tokens=16)
    assert list((tmp_path / "out").glob("checkpoint-*"))
    assert not asked


def test_adapters_are_on_every_linear_layer_of_the_llm_and_the_projector_is_saved_whole(adapter, llava_base):
    start = load_model(llava_base, dtype="float32").model
    saved = load_file(adapter / "adapter_model.safetensors")
    adapted = {name.rsplit(".lora_", 1)[0].removeprefix("base_model.model.") for name in saved if ".lora_" in name}
    assert adapted == {
        f"model.language_model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
        for layer in range(2)
        for name in LINEAR
    }
    whole = {name.removeprefix("base_model.model.") for name in saved if ".lora_" not in name}
    assert whole == {name for name, _ in start.named_parameters() if part_of(name) == "projector"}
    assert not (adapter / "model.safetensors").exists()


def test_loaded_and_merged_models_are_the_trained_one(adapter, llava_base, data_folder, tmp_path):
    from peft import PeftModel

    base = load_model(llava_base, dtype="float32")
    before = logits(base, data_folder)
    unmerged = PeftModel.from_pretrained(base.model, str(adapter)).eval()
    with torch.inference_mode():
        expected = unmerged(**inputs_for(base, data_folder)).logits
    assert (expected - before).abs().max() > 0.1
    assert cli(["merge", str(adapter), str(tmp_path / "merged")]) == 0
    for folder in (adapter, tmp_path / "merged"):
        llava = load_model(folder)
        assert type(llava.model).__name__ == "LlavaStfForConditionalGeneration"
        assert not any("lora" in name for name, _ in llava.model.named_modules())
        # W x + B A x against (W + B A) x, in float32 with logits of about 10
        torch.testing.assert_close(logits(llava, data_folder), expected, rtol=0, atol=1e-4)
        assert isinstance(llava.ask(data_folder / "red.png", QUESTION, max_new_tokens=2), str)


def test_tower_embeddings_and_head_stay_the_bases(adapter, llava_base):
    before, after = (load_model(path, dtype="float32").model.state_dict() for path in (llava_base, adapter))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    layers = {name for name in before if name.endswith(tuple(f"{leaf}.weight" for leaf in LINEAR))}
    layers = {name for name in layers if part_of(name) == "language_model"}
    assert changed - layers <= {name for name in before if part_of(name) == "projector"}
    assert layers <= changed


def test_adapters_and_projector_move_by_their_own_learning_rates(llava_base, data_folder, tmp_path):
    """AdamW's first step moves a weight by about the learning rate; the second matrix of an adapter starts at zero."""
    options = {"max_steps": 1, "warmup_ratio": 0, "scheduler": "constant_with_warmup"}
    folder = train(llava_base, data_folder, tmp_path / "out", **options)
    saved = load_file(folder / "adapter_model.safetensors")
    moved = max(value.abs().max().item() for name, value in saved.items() if ".lora_B." in name)
    assert moved == pytest.approx(1e-2, rel=0.05)
    start = load_model(llava_base, dtype="float32").model.state_dict()
    moved = max(
        (value - start[name.removeprefix("base_model.model.")]).abs().max().item()
        for name, value in saved.items()
        if ".lora_" not in name
    )
    assert moved == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"vision_tokens": "all"}, 16), ({"reduction": "pool", "bf16": True}, 4), ({"vision_tokens": 1}, 1)],
    ids=["all", "pool", "one"],
)
def test_an_adapter_brings_the_base_to_its_own_tokens(llava_base, data_folder, tmp_path, options, tokens):
    folder = train(llava_base, data_folder, tmp_path / "out", max_steps=1, save_dtype="bfloat16", **options)
    llava = load_model(folder)
    assert [llava.vision_tokens] == llava.processor.num_image_tokens([(56, 56)]) == [tokens]
    assert isinstance(llava.ask(data_folder / "red.png", QUESTION, max_new_tokens=2), str)
    saved = load_file(folder / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert load_model(merge_lora(folder, tmp_path / "merged")).vision_tokens == tokens


def test_resumed_run_ends_where_the_uninterrupted_one_does(llava_base, data_folder, tmp_path):
    options = {"max_steps": 6, "save_steps": 3, "lora_dropout": 0.2}
    whole = train(llava_base, data_folder, tmp_path / "whole", **options)
    cut = train(llava_base, data_folder, tmp_path / "cut", **options)
    shutil.rmtree(cut / "checkpoint-6")
    for name in ("config.json", "adapter_model.safetensors"):
        (cut / name).unlink()
    train(llava_base, data_folder, cut, resume=True, **options)
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6, msg=name)


def test_a_checkpoint_of_adapters_loads_as_the_result_does(llava_base, data_folder, tmp_path):
    folder = train(llava_base, data_folder, tmp_path / "out", max_steps=4, save_steps=4)
    result, checkpoint = (load_model(path, dtype="float32") for path in (folder, folder / "checkpoint-4"))
    assert checkpoint.vision_tokens == result.vision_tokens
    assert torch.equal(logits(checkpoint, data_folder), logits(result, data_folder))


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_gathered_weights_are_saved_where_the_models_own_are_sharded(llava_base, data_folder, tmp_path, lora):
    options = {"base": str(llava_base), "data": "d", "output": str(tmp_path), "lora_rank": 2 if lora else None}
    config = from_values({**options, "bf16": False})
    model, processor = load_start(config, None)
    trained = add_lora(model, config) if lora else model
    expected = logits(load_model(llava_base, dtype="float32"), data_folder)
    gathered = {name: value.clone() for name, value in trained.state_dict().items()}
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    save_model(
        trained, processor, tmp_path, torch.bfloat16, save=save_adapter if lora else save_whole, state_dict=gathered
    )
    assert load_model(tmp_path, dtype="stored" if not lora else "bfloat16").model.dtype == torch.bfloat16
    found = logits(load_model(tmp_path, dtype="float32"), data_folder)
    # weights of 8 bits, in logits of about 10: measured 0.07
    torch.testing.assert_close(found, expected, rtol=0, atol=0.2)


@pytest.fixture(scope="module")
def four_bit_adapter(data_folder, tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    return train("tiny", data_folder, tmp_path_factory.mktemp("qlora") / "out", quantization="4bit")


def test_qlora_result_loads_in_4_bits_and_merges_into_the_dequantized_base(four_bit_adapter, data_folder, tmp_path):
    from bitsandbytes.nn import Linear4bit

    trained = load_model(four_bit_adapter, dtype="float32")
    layers = trained.model.model.language_model.modules()
    assert sum(isinstance(module, Linear4bit) for module in layers) == 6 * len(LINEAR)
    # Where no gradient is needed bitsandbytes goes over to bfloat16 on some CPUs, whatever dtype was asked for.
    trained.model.get_input_embeddings().weight.requires_grad_(True)
    expected = trained.model(**inputs_for(trained, data_folder)).logits.detach()
    assert isinstance(trained.ask(data_folder / "red.png", QUESTION, max_new_tokens=2), str)
    merged = load_model(merge_lora(four_bit_adapter, tmp_path / "merged", dtype="float32"))
    assert not any(isinstance(module, Linear4bit) for module in merged.model.modules())
    assert merged.model.dtype == torch.float32
    # the same 4-bit weights, brought back: rounding of float32 alone, in logits of about 10
    torch.testing.assert_close(logits(merged, data_folder), expected, rtol=0, atol=1e-4)
    untrained = logits(load_model("tiny", dtype="float32", quantization="4bit"), data_folder)
    assert (untrained - expected).abs().max() > 0.1


def test_merge_refuses_an_existing_folder_and_what_is_no_adapter(adapter, llava_base, tmp_path, capsys):
    there = tmp_path / "there"
    there.mkdir()
    assert cli(["merge", str(adapter), str(there)]) == 2
    assert list(there.iterdir()) == []
    assert cli(["merge", str(llava_base), str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert "exists already" in error
    assert "adapter_config.json" in error
    assert not (tmp_path / "new").exists()


def test_a_missing_base_is_named(copy):
    edit(copy / "adapter_config.json", base_model_name_or_path="/no/such/base")
    with pytest.raises(ModelNotFoundError, match=r"'/no/such/base', which is not there.*base_model_name_or_path"):
        load_model(copy)


def test_a_base_of_other_widths_is_refused_before_its_weights_are_read(copy, tmp_path):
    from llava_stf.loading.testing import write_tiny_llava

    other = write_tiny_llava(tmp_path / "other", stf=False, grid=6)
    (other / "model.safetensors").write_bytes(b"")
    edit(copy / "adapter_config.json", base_model_name_or_path=str(other))
    with pytest.raises(CheckpointError, match=r"vision_config\.image_size 56, and .* has 84"):
        load_model(copy)


@pytest.mark.parametrize("damage", ["cut", "missing", "shape"])
def test_damaged_adapters_are_refused_and_leave_no_merged_model(copy, tmp_path, damage):
    file = copy / "adapter_model.safetensors"
    state = load_file(file)
    name = min(state)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        value = state.pop(name)
        save_file(state if damage == "missing" else state | {name: value[:1].clone()}, file)
    with pytest.raises(CheckpointError, match=r"cannot be read" if damage == "cut" else name):
        merge_lora(copy, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_is_no_base_for_another_run(adapter, data_folder, tmp_path):
    with pytest.raises(LlavaStfError, match="llava-stf merge"):
        train(adapter, data_folder, tmp_path / "out")


def test_overwrite_replaces_the_run_and_nothing_else(copy, llava_base, data_folder):
    (copy / "notes.txt").write_text("mine")
    options = {"overwrite": True, "lora_rank": None, "max_steps": 1}
    with pytest.raises(LlavaStfError):
        train(llava_base, data_folder, copy, data=str(data_folder / "none.json"), **options)
    assert (copy / "adapter_model.safetensors").exists()
    train(llava_base, data_folder, copy, **options)
    assert (copy / "notes.txt").read_text() == "mine"
    assert not (copy / "adapter_model.safetensors").exists()
    assert [path.name for path in copy.glob("checkpoint-*")] == ["checkpoint-1"]
    assert load_model(copy).vision_tokens == 4


def test_overwrite_does_not_take_the_base_away(llava_base, data_folder, tmp_path):
    base = shutil.copytree(llava_base, tmp_path / "base")
    with pytest.raises(LlavaStfError, match="lies in the output"):
        train(base, data_folder, tmp_path / "base", overwrite=True)
    assert (base / "model.safetensors").exists()
