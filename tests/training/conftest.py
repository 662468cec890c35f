"""A tiny LLaVA with random weights and a small data set in LLaVA's format."""

import json

import pytest
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 220)}


def make_tokenizer(texts, vocab_size=480):
    """A LLaMA tokenizer (byte fallback, `legacy=False` as Vicuna's) with `<image>` and `<pad>` behind its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], legacy=False, pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def make_llava(folder, texts, *, width=16, blocks=6, layers=2, hidden=32, heads=2, image_size=56, seed=0, **tokenizer):
    """Writes a plain LLaVA of the given sizes, with a CLIP tower of 14 px patches, to `folder`."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaImageProcessorPil,
        LlavaProcessor,
    )

    from llava_stf.conversation import CHAT_TEMPLATE

    tokenizer = make_tokenizer(texts, **tokenizer)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=blocks,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=2048,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(image_size // 14) ** 2,
    )
    torch.manual_seed(seed)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    LlavaProcessor(
        LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": image_size}, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def conversation(colour):
    return [
        {"from": "human", "value": "<image>\nWhat is the colour of the square?"},
        {"from": "gpt", "value": colour},
        {"from": "human", "value": f"Is it {colour}?"},
        {"from": "gpt", "value": "Yes, it is."},
    ]


@pytest.fixture(scope="session")
def records():
    """Twelve samples: nine with one image, two of text alone, one with two images."""
    samples = [
        {"id": f"s{i}", "image": f"{colour}.png", "conversations": conversation(colour)}
        for i, colour in enumerate(list(COLOURS) * 3)
    ]
    chat = [{"from": "human", "value": "How are you?"}, {"from": "gpt", "value": "I am a square."}]
    two = [{"from": "human", "value": "<image>\n<image>\nSame colour?"}, {"from": "gpt", "value": "No."}]
    return [
        *samples,
        {"id": "t0", "conversations": chat},
        {"id": "t1", "conversations": chat},
        {"id": "m0", "image": ["red.png", "blue.png"], "conversations": two},
    ]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory, records):
    """instruct.json, align.json and three PNG files."""
    folder = tmp_path_factory.mktemp("data")
    for name, rgb in COLOURS.items():
        Image.new("RGB", (40, 60), rgb).save(folder / f"{name}.png")
    (folder / "instruct.json").write_text(json.dumps(records, indent=1))
    captions = [
        {
            "id": name,
            "image": f"{name}.png",
            "conversations": [
                {"from": "human", "value": "Describe it.\n<image>"},
                {"from": "gpt", "value": f"a {name} square"},
            ],
        }
        for name in COLOURS
    ]
    (folder / "align.json").write_text(json.dumps(captions))
    return folder


@pytest.fixture(scope="session")
def llava_base(tmp_path_factory, records):
    """The folder of a plain LLaVA with 4x4 patches, 3 blocks of width 16 and a LLaMA of width 32."""
    from llava_stf.conversation import SYSTEM_PROMPT

    folder = tmp_path_factory.mktemp("base")
    texts = [turn["value"] for record in records for turn in record["conversations"]]
    make_llava(folder, [*texts, f"{SYSTEM_PROMPT} USER: ASSISTANT:"], blocks=3)
    return folder


@pytest.fixture
def llava_processor(llava_base):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(llava_base)
