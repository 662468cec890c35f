"""Released checkpoints of the four methods, and timm's ViTs, as ordinary Vision Transformers of transformers."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPImageProcessorPil, ViTConfig, ViTModel

from llava_stf.encoders.checkpoints import choose_encoder, find_encoders, to_vit
from llava_stf.encoders.convert import convert_encoder, read_encoder
from llava_stf.errors import CheckpointError, LlavaStfError, ModelNotFoundError
from llava_stf.models.vision.vits import vit_config

TOKENS = {"rtol": 0, "atol": 1e-5}
GOLDEN_HEADS = 3
SIZES = {"native": None, "larger": 48, "nonsquare": (40, 32)}


def assert_golden_tokens(model, golden, prefix=""):
    with torch.inference_mode():
        pixels = golden[prefix.split(".")[0] + ".pixel_values" if prefix else "pixel_values"]
        found = model(pixels, output_hidden_states=True)
    torch.testing.assert_close(found.hidden_states[0], golden[f"{prefix}embeddings"], **TOKENS)
    for block in range(model.config.num_hidden_layers):
        torch.testing.assert_close(found.hidden_states[block + 1], golden[f"{prefix}block{block}"], **TOKENS)
    torch.testing.assert_close(found.last_hidden_state, golden[f"{prefix}tokens_normed"], **TOKENS)


@pytest.fixture
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    return ViTModel(config, add_pooling_layer=False).eval()


@pytest.mark.parametrize("method", ["patchmix", "mgc", "mos"])
@pytest.mark.parametrize("select", ["query", "momentum"])
@pytest.mark.parametrize("size", SIZES)
def test_tokens_of_every_block_are_the_official_ones(golden_ssl, method, select, size):
    """MOS's released layout is not known: a PatchMix file stands for it."""
    folder = golden_ssl / ("patchmix" if method == "mos" else method)
    golden = load_file(folder / "vit_forward.safetensors")
    model, _ = read_encoder(
        folder / "vit_checkpoint.safetensors",
        encoder=method, heads=GOLDEN_HEADS, select=select, image_size=SIZES[size],
    )  # fmt: skip
    assert_golden_tokens(model, golden, f"{size}.{'base' if select == 'query' else 'momentum'}_encoder.")


def test_tokens_of_aps_are_the_official_ones_and_its_class_token_has_no_position(golden_ssl):
    folder = golden_ssl / "aps"
    model, notes = read_encoder(folder / "vit_checkpoint.safetensors", encoder="aps", heads=GOLDEN_HEADS)
    assert_golden_tokens(model, load_file(folder / "vit_forward.safetensors"))
    assert (model.config.qkv_bias, model.config.layer_norm_eps) == (False, 1e-5)
    assert not model.embeddings.position_embeddings[:, 0].any()
    assert any("fc (16)" in note and "predictor (16)" in note for note in notes)


def test_written_folder_loads_as_it_was_read_with_the_preprocessor_of_the_method(golden_ssl, tmp_path, caplog):
    folder = golden_ssl / "patchmix"
    dst = convert_encoder(
        folder / "vit_checkpoint.safetensors", tmp_path / "vit", encoder="patchmix", heads=GOLDEN_HEADS, image_size=48
    )
    model = AutoModel.from_pretrained(dst).eval()
    assert type(model) is ViTModel
    assert_golden_tokens(model, load_file(folder / "vit_forward.safetensors"), "larger.momentum_encoder.")
    processor = CLIPImageProcessorPil.from_pretrained(dst)
    assert processor.crop_size["height"] == 48
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406)
    assert "encoder.layer.0.attention.attention.query.weight" in load_file(dst / "model.safetensors")
    said = " ".join(caplog.messages)
    for part in ("momentum encoder", "predictor", "base_encoder", "head", "from 4x4 to 6x6"):
        assert part in said


def test_cifar_images_of_aps_have_cifar_statistics(tmp_path, from_vit):
    torch.manual_seed(0)
    config = vit_config("aps", "tiny", image_size=32, patch_size=2)
    config.num_hidden_layers = 1
    state = from_vit(ViTModel(config, add_pooling_layer=False).state_dict(), layout="aps")
    save_file({f"base_encoder.{name}": tensor for name, tensor in state.items()}, tmp_path / "aps.safetensors")
    dst = convert_encoder(tmp_path / "aps.safetensors", tmp_path / "vit", encoder="aps")
    assert json.loads((dst / "preprocessor_config.json").read_text())["image_mean"] == [0.4914, 0.4822, 0.4465]
    assert AutoModel.from_pretrained(dst).config.num_attention_heads == 3


@pytest.mark.parametrize("layout", ["timm", "aps"])
def test_official_names_there_and_back(vit, from_vit, layout):
    state = vit.state_dict()
    if layout == "aps":
        state["embeddings.position_embeddings"][:, 0] = 0
    back = to_vit(from_vit(state, layout=layout))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("wrap", "select"),
    [
        (lambda state: state, None),
        (lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)}, None),
        (lambda state: {"epoch": 3, "state_dict": {f"module.momentum_encoder.{k}": v for k, v in state.items()}}, None),
        (lambda state: {"student": {}, "teacher": {f"backbone.{k}": v for k, v in state.items()}}, "momentum"),
        (
            lambda state: {
                "student": {f"module.backbone.{k}": v + 1 for k, v in state.items()},
                "teacher": {f"backbone.{k}": v for k, v in state.items()} | {"head.mlp.0.weight": torch.zeros(2, 2)},
            },
            None,
        ),
        (lambda state: {f"module.{k}": v for k, v in state.items()}, None),
        (lambda state: {"state_dict": {f"module.base_encoder.{k}": v for k, v in state.items()}}, "query"),
    ],
    ids=["bare", "mae", "mocov3", "dino", "dino-trained", "parallel", "query-only"],
)
def test_files_of_other_methods_in_timms_layout(vit, from_vit, tmp_path, wrap, select):
    heads = {"head.weight": torch.zeros(3, 16), "mask_token": torch.zeros(1, 1, 16), "fc_norm.bias": torch.zeros(16)}
    state = from_vit(vit.state_dict()) | heads | {"decoder_blocks.0.attn.qkv.weight": torch.zeros(6, 2)}
    torch.save(wrap(state), tmp_path / "vit.pth")
    model, _ = read_encoder(tmp_path / "vit.pth", encoder="timm", heads=2, select=select)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in vit.state_dict().items())
    assert model.config.layer_norm_eps == 1e-6


def test_head_counts_follow_the_method_and_its_width():
    heads = {
        method: [
            vit_config(method, size, image_size=32, patch_size=2).num_attention_heads
            for size in ("tiny", "small", "base")
        ]
        for method in ("patchmix", "aps", "mgc", "mos", "mocov3")
    }
    assert heads == {
        "patchmix": [3, 12, 12], "aps": [3, 6, 12], "mgc": [3, 8, 12], "mos": [3, 12, 12], "mocov3": [3, 12, 12],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "patchmax"}, "did you mean 'patchmix'"),
        ({"encoder": "aps"}, "found timm's .* take --encoder patchmix"),
        ({"encoder": "timm"}, "head count of a timm of width 16 is not known .*--heads"),
        ({"encoder": "timm", "heads": 3}, "3 heads do not divide the width 16"),
        ({"encoder": "timm", "heads": 2, "select": "query"}, "found encoders under 'momentum_encoder.'"),
        ({"encoder": "timm", "heads": 2, "image_size": 50}, "Patches of 8 px do not divide an image of 50 px"),
    ],
)
def test_options_that_do_not_fit_the_file_are_refused(vit, from_vit, tmp_path, options, message):
    state = {f"momentum_encoder.{name}": tensor for name, tensor in from_vit(vit.state_dict()).items()}
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(LlavaStfError, match=message) as error:
        convert_encoder(tmp_path / "vit.safetensors", tmp_path / "out", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_layout_that_is_not_known_is_told_with_what_was_found(tmp_path):
    save_file({"stem.conv1.weight": torch.zeros(2), "layer1.0.bn.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"found .*stem\.conv1\.weight.*; known are timm's .*APS|aps's"):
        read_encoder(tmp_path / "a.safetensors", encoder="timm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.1.mlp.fc2.bias"), "lacks 1 tensors, the first is layers.1.mlp.fc2.bias"),
        (lambda state: state.update({"blocks.0.ls1.gamma": torch.ones(16)}), "no place in a plain ViT.*ls1.gamma"),
        (lambda state: state.update({"norm.weight": torch.ones(8)}), r"layernorm.weight has shape \[8\]"),
        (lambda state: state.update(pos_embed=torch.zeros(1, 15, 16)), "positions of a square"),
        (lambda state: state.pop("cls_token"), "found no class token;"),
        (
            lambda state: [state.update({f"fc_norm.{k}": state.pop(f"norm.{k}")}) for k in ("weight", "bias")],
            "found no final LayerNorm; a ViT that was trained on the mean of its patches",
        ),
        (lambda state: state.update(reg_token=torch.zeros(1, 4, 16)), "no place in a plain ViT.*reg_token"),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("blocks.0.")],
            "expected blocks 0 to 1, found",
        ),
    ],
)
def test_damaged_encoders_are_refused_by_name(vit, from_vit, tmp_path, change, message):
    state = from_vit(vit.state_dict())
    change(state)
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=message):
        read_encoder(tmp_path / "vit.pth", encoder="timm", heads=2)


def test_pickles_that_could_run_code_and_truncated_files_are_refused(vit, from_vit, tmp_path):
    torch.save(vit, tmp_path / "module.pth")
    whole = tmp_path / "vit.safetensors"
    save_file(from_vit(vit.state_dict()), whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    for file, message in ((tmp_path / "module.pth", "could run code"), (cut, "no complete safetensors")):
        with pytest.raises(CheckpointError, match=message) as error:
            read_encoder(file, encoder="timm", heads=2)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelNotFoundError, match="No checkpoint file at"):
        read_encoder(tmp_path / "absent.pth", encoder="timm")
    with pytest.raises(CheckpointError, match=r"found the folder .*; an encoder of transformers is taken"):
        read_encoder(tmp_path, encoder="timm")


def test_two_encoders_without_a_role_are_not_guessed(vit, from_vit):
    state = from_vit(vit.state_dict())
    both = {f"{prefix}.{name}": tensor for prefix in ("a", "b") for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r"found encoders under 'a\.', 'b\.'"):
        choose_encoder(find_encoders(both), None)
