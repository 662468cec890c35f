"""`llava-stf encoders`, `assemble` and `convert --encoder`, and what the catalogue says about sizes."""

import json

import pytest
import torch
import typer
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM, LlamaTokenizer, ViTConfig, ViTModel

from llava_stf import load_model
from llava_stf.cli import main
from llava_stf.cli.assemble import assemble
from llava_stf.cli.encoders import encoders
from llava_stf.encoders.catalogue import ENCODERS
from llava_stf.loading.testing import CHARACTERS
from llava_stf.models.vision.layers import default_fusion_layers
from llava_stf.models.vision.states import select_hidden_states
from llava_stf.models.vision.vits import ARCHITECTURES


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.name)
def test_sizes_in_the_catalogue_are_those_of_the_model_that_transformers_builds(encoder):
    config = AutoConfig.for_model(encoder.model_type, **encoder.config)
    with torch.device("meta"):
        tower = AutoModel.from_config(config)
        (state,) = select_hidden_states(tower, torch.empty(1, 3, config.image_size, config.image_size), [0])
    counted = {name: p.numel() for name, p in tower.named_parameters() if "pooler." not in name and "head." not in name}
    assert sum(counted.values()) == encoder.parameters
    assert state.shape[1] - (config.image_size // encoder.patch) ** 2 == encoder.special
    if encoder.encoder is not None:
        built = ARCHITECTURES[encoder.encoder]
        assert config.num_attention_heads == built.heads[encoder.width]
        assert config.qkv_bias == built.qkv_bias


def test_names_in_the_catalogue_are_unique():
    assert len({encoder.name for encoder in ENCODERS}) == len(ENCODERS)


def run_typer(command, *arguments):
    return command(list(arguments), standalone_mode=False)


def test_encoders_lists_by_default_and_in_json(capsys):
    run_typer(encoders)
    text = capsys.readouterr().out
    assert all(f"{encoder.name}: " in text and encoder.source in text for encoder in ENCODERS)
    assert "5 tokens before them" in text
    run_typer(encoders, "list", "--json")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["name"] for record in records] == [encoder.name for encoder in ENCODERS]
    assert records[0]["fusion_layers"] == default_fusion_layers(24) == [-2, 21, 18, 15, 12, 9, 6, 3]


@pytest.fixture
def checkpoint(tmp_path, from_vit):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    state = from_vit(ViTModel(config, add_pooling_layer=False).state_dict())
    roles = ("base_encoder", "momentum_encoder")
    save_file(
        {f"{role}.{key}": value.clone() for role in roles for key, value in state.items()}, tmp_path / "vit.safetensors"
    )
    return tmp_path / "vit.safetensors"


def test_convert_takes_an_encoder_with_its_options(checkpoint, tmp_path, capsys):
    options = ["--encoder", "patchmix", "--heads", "4", "--select", "query", "--image-size", "48"]
    assert main(["convert", str(checkpoint), str(tmp_path / "vit"), *options]) == 0
    config = AutoModel.from_pretrained(tmp_path / "vit").config
    assert (config.num_attention_heads, config.image_size) == (4, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "4"], "--heads goes with --encoder only"),
        (["--encoder", "timm", "--to", "original"], "--to does not go with --encoder"),
        (["--encoder", "patchmix"], "give it with heads (--heads)"),
        (["--encoder", "patchmax"], "did you mean 'patchmix'"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(checkpoint, tmp_path, capsys, options, message):
    assert main(["convert", str(checkpoint), str(tmp_path / "vit"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "vit").exists()


def test_assemble_writes_a_model_at_the_tokens_and_size_asked_for(tmp_path):
    ViTModel(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
        )
    ).save_pretrained(tmp_path / "vit")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    tokenizer = LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], legacy=False)
    tokenizer.save_pretrained(tmp_path / "llm")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "llm")
    app = typer.Typer()
    app.command()(assemble)
    options = ["--vision-encoder", str(tmp_path / "vit"), "--language-model", str(tmp_path / "llm")]
    run_typer(app, str(tmp_path / "out"), *options, "--vision-tokens", "9", "--image-size", "48", "--init", "pool")
    llava = load_model(tmp_path / "out")
    assert llava.vision_tokens == 9
    assert llava.model.config.vision_config.image_size == 48
    assert llava.processor.image_processor.crop_size["height"] == 48
