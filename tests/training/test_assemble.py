"""An untrained LLaVA from any CLIP-like tower and causal language model."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SwinConfig,
    SwinModel,
)

from llava_stf import load_model
from llava_stf.errors import CheckpointError, FusionError, LlavaStfError
from llava_stf.loading.testing import CHARACTERS
from llava_stf.training.assemble import assemble, build_model
from llava_stf.training.config import from_values
from llava_stf.training.finetune import finetune
from llava_stf.training.optim import part_of

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def byte_tokenizer():
    """A GPT-like tokenizer without a token that begins a text, ending it with `<|endoftext|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate([*letters, "<|endoftext|>"])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def vicuna_tokenizer():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    return LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], legacy=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tower, a vision model of several resolutions and four language models with random weights, by name."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**TOWER, patch_size=14)).save_pretrained(root / "clip")
    shallow = CLIPVisionConfig(**{**TOWER, "num_hidden_layers": 1}, patch_size=14)
    CLIPVisionModel(shallow).save_pretrained(root / "shallow")
    swin = SwinConfig(image_size=56, patch_size=7, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
    SwinModel(swin).save_pretrained(root / "swin")
    vicuna = vicuna_tokenizer()
    sizes = {**WIDTHS, "max_position_embeddings": 512, "initializer_range": 0.2}
    grouped = {**sizes, "num_key_value_heads": 1, "vocab_size": 300}
    gpt2 = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=512)
    models = {
        "llama": (LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(vicuna))), vicuna),
        "qwen2": (Qwen2ForCausalLM(Qwen2Config(**grouped, tie_word_embeddings=True)), byte_tokenizer()),
        "gpt2": (GPT2LMHeadModel(gpt2), byte_tokenizer()),
        "gemma2": (
            Gemma2ForCausalLM(Gemma2Config(**grouped, head_dim=16, final_logit_softcapping=0.5)),
            byte_tokenizer(),
        ),
    }
    for name, (model, tokenizer) in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.mark.parametrize(("name", "rows"), [("llama", 355), ("qwen2", 300)])
def test_assembled_folder_loads_answers_and_holds_tower_and_language_model(folders, tmp_path, data_folder, name, rows):
    folder = assemble(folders / "clip", folders / name, tmp_path / "out")
    llava = load_model(folder)
    assert llava.vision_tokens == 4
    assert isinstance(llava.ask(data_folder / "red.png", "What colour is it?", max_new_tokens=3), str)
    ids = torch.tensor([[1, 5, 6, 7]])
    lm = AutoModelForCausalLM.from_pretrained(folders / name)
    with torch.inference_mode():
        torch.testing.assert_close(llava.model(input_ids=ids).logits[..., :rows], lm(input_ids=ids).logits)
    tower = CLIPVisionModel.from_pretrained(folders / "clip").state_dict()
    found = llava.model.model.vision_tower.state_dict()
    assert all(torch.equal(found[key], value) for key, value in tower.items())


def test_vocabulary_ends_with_image_and_pad_and_the_chat_format_has_its_tokens(folders):
    model, processor = build_model(folders / "clip", folders / "qwen2")
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [300, 301]
    assert model.config.image_token_id == 300
    assert model.config.text_config.vocab_size == model.get_input_embeddings().num_embeddings == 320
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("</s>")


@pytest.mark.parametrize("name", ["tiny", "tiny-full"])
def test_a_llava_lends_its_language_model_and_its_vocabulary(folders, tmp_path, name):
    lender, lent_processor = load_model(name, dtype="float32")
    model, processor = load_model(assemble(folders / "clip", name, tmp_path / "out"))
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=ids).logits, lender(input_ids=ids).logits)
    assert processor.tokenizer.get_vocab() == lent_processor.tokenizer.get_vocab()
    assert model.config.image_token_id == lender.config.image_token_id
    assert model.config.vision_config.image_size == 56


def test_fusion_layers_are_those_asked_for(folders, tmp_path):
    one = load_model(assemble(folders / "clip", "tiny", tmp_path / "one", fusion_layers=[-2]))
    assert one.model.config.fusion_layers == [-2]
    assert one.model.model.multi_modal_projector.block_fusion.linear_1.in_features == TOWER["hidden_size"]
    with pytest.raises(FusionError, match="Fusion layer 9 does not exist"):
        assemble(folders / "clip", "tiny", tmp_path / "two", fusion_layers=[9])
    with pytest.raises(FusionError, match="fusion_layers is for a fused projector"):
        assemble(folders / "clip", "tiny", tmp_path / "two", fusion_layers=[-2], vision_tokens="all")
    assert not (tmp_path / "two").exists()


def test_a_seed_makes_one_model(folders):
    first, again, other = (
        build_model(folders / "clip", folders / "llama", seed=seed)[0].state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert {part_of(name) for name in first if not torch.equal(first[name], other[name])} >= {"projector"}


@pytest.mark.parametrize(
    ("tower", "name", "message"),
    [
        ("swin", "llama", "cannot be a vision tower"),
        ("llama", "llama", "no vision tower for square images"),
        ("clip", "gpt2", "tied to embeddings"),
        ("clip", "gemma2", "logits are more than a linear layer"),
        ("clip", "clip", "holds a clip_vision_model, which is no causal language model of transformers"),
        ("shallow", "llama", "has a single block"),
    ],
)
def test_parts_that_make_no_llava_are_refused(folders, tmp_path, tower, name, message):
    with pytest.raises(CheckpointError, match=message) as error:
        assemble(folders / tower, folders / name, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_count_that_no_window_gives_is_refused(folders, tmp_path):
    with pytest.raises(FusionError, match="No window"):
        assemble(folders / "clip", folders / "llama", tmp_path / "out", vision_tokens=5)


def test_alignment_starts_from_a_language_model_and_a_tower(folders, data_folder, tmp_path):
    options = {
        "base": str(folders / "llama"),
        "data": str(data_folder / "align.json"),
        "output": str(tmp_path / "out"),
        "stage": "align",
        "init": "random",
        "max_steps": 2,
        "per_device_batch_size": 2,
        "num_workers": 0,
        "cpu_threads": 1,
    }
    with pytest.raises(LlavaStfError, match="without a vision tower: give one with --vision-tower"):
        finetune(from_values(options))
    finetune(from_values({**options, "vision_tower": str(folders / "clip")}))
    llava = load_model(tmp_path / "out")
    start = build_model(folders / "clip", folders / "llama")[0].state_dict()
    trained = llava.model.state_dict()
    kept = [name for name in start if part_of(name) != "projector"]
    assert all(torch.equal(trained[name], start[name]) for name in kept)
    assert llava.vision_tokens == 4


def test_lora_needs_a_base_with_a_projector(folders, data_folder, tmp_path):
    options = {"base": str(folders / "llama"), "vision_tower": str(folders / "clip"), "lora_rank": 4}
    with pytest.raises(LlavaStfError, match="run stage align first"):
        finetune(from_values({**options, "data": str(data_folder / "instruct.json"), "output": str(tmp_path / "out")}))
