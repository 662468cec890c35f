"""A LLaVA-STF on any vision tower: with a class token, without one, with registers, of another size."""

import json

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from llava_stf import apply_stf, load_model, remove_stf
from llava_stf.analysis.counting import tower_flops
from llava_stf.errors import CheckpointError, FusionError, LlavaStfError
from llava_stf.loading.testing import CHARACTERS
from llava_stf.models.vision.towers import load_tower, special_tokens, special_tokens_of
from llava_stf.reduction import apply_reduction
from llava_stf.training.assemble import assemble, build_model
from llava_stf.training.config import from_values
from llava_stf.training.finetune import finetune

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
MLP = {"intermediate_size": 32}
TOWERS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig(**SIZES, **MLP), 1),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**SIZES, **MLP), 0),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3), 4),
    "vit": (ViTModel, ViTConfig(**SIZES, **MLP), 1),
}
STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of random towers, each with a preprocessor, and of a random language model with its tokenizer."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    for name, (model, config, _) in TOWERS.items():
        model(config).save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    tokenizer = LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], legacy=False)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, initializer_range=0.2, **sizes)
    ).save_pretrained(root / "llm")
    tokenizer.save_pretrained(root / "llm")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (40, 60), (220, 30, 30)).save(folder / "red.png")
    samples = [
        {
            "id": str(number),
            "image": "red.png",
            "conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}],
        }
        for number in range(4)
    ]
    (folder / "samples.json").write_text(json.dumps(samples))
    return folder


@pytest.mark.parametrize("name", TOWERS)
def test_tokens_before_the_patches_are_counted(parts, name):
    tower = AutoModel.from_pretrained(parts / name)
    assert special_tokens(tower) == special_tokens_of(tower.config) == TOWERS[name][2]


@pytest.mark.parametrize("name", TOWERS)
def test_the_towers_flops_count_its_own_tokens_and_layers(parts, name):
    model, _ = build_model(parts / name, parts / "llm")
    positions, width, mlp = 16 + TOWERS[name][2], 16, 64 if name == "registers" else 32
    block = 2 * positions * (4 * width**2 + 2 * width * mlp) + 4 * positions**2 * width
    assert tower_flops(model.config) == 3 * block + 2 * 16 * 3 * 14**2 * width


@pytest.mark.parametrize(("name", "before", "found"), [("siglip", 1, 0), ("registers", 1, 4)])
def test_a_method_that_would_take_other_tokens_for_patches_is_refused(parts, name, before, found):
    model, processor = build_model(parts / name, parts / "llm")
    with pytest.raises(FusionError, match=f"follow {before} other tokens .* they follow {found}. Fuse tokens instead"):
        apply_reduction(model, processor, "resize", vision_tokens=4)
    assert type(model) is LlavaForConditionalGeneration
    model.config.vision_feature_select_strategy = "full"
    if found:
        with pytest.raises(FusionError, match="follow 0 other tokens"):
            apply_reduction(model, processor, "resize", vision_tokens=4)
    else:
        apply_reduction(model, processor, "resize", vision_tokens=4)
        assert model.model.get_image_features(torch.randn(1, 3, 56, 56)).pooler_output[0].shape == (4, 32)


@pytest.mark.parametrize("name", TOWERS)
@torch.inference_mode()
def test_every_patch_and_nothing_else_is_fused(parts, name):
    model, processor = build_model(parts / name, parts / "llm")
    apply_stf(model, processor, init="random")
    pixels = torch.randn(2, 3, 56, 56)
    found = torch.stack(list(model.get_image_features(pixels).pooler_output))

    states = AutoModel.from_pretrained(parts / name)(pixels, output_hidden_states=True).hidden_states
    assert model.config.fusion_states == [-2, 1][: len(model.config.fusion_states)]
    patches = torch.cat([states[layer][:, TOWERS[name][2] :] for layer in model.config.fusion_states], dim=-1)
    assert patches.shape[1] == 16
    block, spatial = model.model.multi_modal_projector.block_fusion, model.model.multi_modal_projector.spatial_fusion
    fused = block.linear_2(functional.gelu(block.linear_1(patches)))
    windows = fused.view(2, 2, 2, 2, 2, 16).permute(0, 1, 3, 5, 2, 4).reshape(2, 4, 64)  # channel-major
    expected = spatial.linear_2(functional.gelu(spatial.linear_1(windows)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_two_stages_train_the_projector_and_the_result_answers(parts, data, tmp_path, name):
    options = {
        "data": str(data / "samples.json"), "max_steps": 2, "per_device_batch_size": 2, "num_workers": 0,
        "cpu_threads": 1,
    }  # fmt: skip
    base = assemble(parts / name, parts / "llm", tmp_path / "untrained")
    finetune(from_values({**options, "base": str(base), "stage": "align", "output": str(tmp_path / "aligned")}))
    finetune(
        from_values(
            {**options, "base": str(tmp_path / "aligned"), "stage": "instruct", "output": str(tmp_path / "tuned")}
        )
    )
    before, after = load_model(base), load_model(tmp_path / "tuned")
    assert after.vision_tokens == 4
    assert isinstance(after.ask(data / "red.png", "Colour?", max_new_tokens=2), str)
    processor = after.processor.image_processor
    assert (list(processor.image_mean), list(processor.image_std)) == tuple(STATISTICS.values())
    changed = {
        key.split("multi_modal_projector.")[-1].split(".")[0]
        for key, value in after.model.state_dict().items()
        if "multi_modal_projector" in key and not torch.equal(value, before.model.state_dict()[key])
    }
    assert changed == {"block_fusion", "spatial_fusion"}
    tower = AutoModel.from_pretrained(parts / name).state_dict()
    kept = after.model.model.vision_tower.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in tower.items() if not key.startswith("pooler."))


@pytest.mark.parametrize("name", TOWERS)
def test_all_patches_reach_the_language_model(parts, data, tmp_path, name):
    llava = load_model(
        assemble(parts / name, parts / "llm", tmp_path / "all", vision_tokens="all"), vision_tokens="all"
    )
    assert llava.vision_tokens == 16
    assert isinstance(llava.ask(data / "red.png", "Colour?", max_new_tokens=1), str)
    pixels = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        found = llava.model.model.get_image_features(pixels).pooler_output[0]
        states = AutoModel.from_pretrained(parts / name)(pixels, output_hidden_states=True).hidden_states[-2]
        projector = llava.model.model.multi_modal_projector
        patches = states[0, TOWERS[name][2] :]
        expected = projector.linear_2(functional.gelu(projector.linear_1(patches)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_plain_llava_on_registers_is_not_asked_silently_wrong(parts):
    model, processor = build_model(parts / "registers", parts / "llm")
    inputs = processor(images=Image.new("RGB", (56, 56)), text="USER: <image> ASSISTANT:", return_tensors="pt")
    with pytest.raises(ValueError, match="tokens"):
        model(**inputs)


def test_a_plain_llava_that_takes_all_states_of_a_tower_without_class_token_is_fused_and_back(parts, data):
    """As the published LLaVAs on SigLIP, whose select strategy is "full"."""
    model, processor = build_model(parts / "siglip", parts / "llm")
    model.config.vision_feature_select_strategy = "full"
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "full", 0
    inputs = processor(images=Image.open(data / "red.png"), text="USER: <image> ASSISTANT:", return_tensors="pt")
    with torch.inference_mode():
        before = model(**inputs).logits
        patches = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        apply_stf(model, processor)
        fused = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        mean = patches.view(2, 2, 2, 2, 32).mean((1, 3)).view(4, 32)
        torch.testing.assert_close(fused, mean, rtol=1e-4, atol=1e-5)
        remove_stf(model, processor)
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("name", TOWERS)
def test_another_size_resizes_the_positions_by_the_towers_own_rule(parts, name):
    tower, fields = load_tower(parts / name, {}, image_size=84)
    assert (tower.config.image_size, fields["crop_size"]["height"]) == (84, 84)
    pixels = torch.randn(1, 3, 84, 84)
    own = AutoModel.from_pretrained(parts / name).eval()
    options = {} if name == "registers" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        torch.testing.assert_close(tower(pixels).last_hidden_state, own(pixels, **options).last_hidden_state)


def test_the_size_of_the_preprocessor_wins_and_its_border_is_kept(parts, tmp_path):
    """As in DINOv2's folders: made for 518 px, used at 224 cut from 256."""
    own, _ = load_tower(parts / "registers", {})
    own.save_pretrained(tmp_path / "tower")
    cut = {"size": {"shortest_edge": 96}, "crop_size": {"height": 84, "width": 84}, "do_center_crop": True}
    (tmp_path / "tower" / "preprocessor_config.json").write_text(json.dumps(cut))
    model, processor = build_model(tmp_path / "tower", parts / "llm")
    assert model.config.vision_config.image_size == 84
    picture = Image.new("RGB", (200, 200), "black")
    picture.paste((255, 255, 255), (0, 0, 200, 14))  # a bar that a cut from 96 to 84 would lose a good part of
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (84, 84)
    assert pixels[0, 0, 0].min() > pixels[0, 0, 40].max()


def test_the_vision_part_of_a_whole_model_is_taken(parts, tmp_path):
    torch.manual_seed(1)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = SiglipModel(SiglipConfig(vision_config={**SIZES, **MLP}, text_config={**text, "vocab_size": 50}))
    whole.save_pretrained(tmp_path / "siglip")
    tower, _ = load_tower(tmp_path / "siglip", {})
    assert type(tower) is SiglipVisionModel
    weights = dict(whole.vision_model.named_parameters())
    for name, value in tower.named_parameters():
        assert torch.equal(value, weights[name.removeprefix("vision_model.")])


def test_a_seed_makes_one_model_on_a_tower_whose_pooling_layer_is_drawn(parts, tmp_path):
    ViTModel(TOWERS["vit"][1], add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    first, again = (build_model(tmp_path / "vit", parts / "llm", seed=1)[0].state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_towers_and_sizes_that_do_not_fit_are_refused(parts, tmp_path):
    with pytest.raises(LlavaStfError, match="Patches of 14 px do not divide an image of 60 px"):
        build_model(parts / "clip", parts / "llm", image_size=60)
    with pytest.raises(FusionError, match="does not divide the grid of 5x5"):
        assemble(parts / "vit", parts / "llm", tmp_path / "out", image_size=70)
    with pytest.raises(CheckpointError, match="llava-stf convert FILE FOLDER --encoder NAME"):
        build_model(parts / "clip" / "model.safetensors", parts / "llm")
    assert not (tmp_path / "out").exists()


def test_a_tower_without_some_of_its_weights_is_refused(parts, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "cut").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "cut" / name).write_bytes((parts / "clip" / name).read_bytes())
    tensors = load_file(parts / "clip" / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight")))
    save_file(tensors, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*layers\.1\.mlp\.fc1\.weight"):
        load_tower(tmp_path / "cut", {})
