"""Put the bundled model together before it is trained: a pre-trained tower, a language model, a tokenizer.

The result is an ordinary plain LLaVA folder with a random projector, which the finetuning entry point
takes as `--base`.

    python -m llava_stf.training.assemble_tiny --tower runs/tower --language runs/objects --output runs/start
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava_stf.conversion.locate import locate
from llava_stf.errors import CheckpointError
from llava_stf.io.arguments import seed
from llava_stf.io.command import run
from llava_stf.io.publish import publish, refuse_existing
from llava_stf.loading import load_model, read_config
from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE, SYSTEM_PROMPT
from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
from llava_stf.models.vision.states import tower_blocks
from llava_stf.models.vision.towers import load_tower
from llava_stf.training.lookup_weights import new_language_model
from llava_stf.training.pretrain_tower import tower_config
from llava_stf.training.scene_words import ORDERS
from llava_stf.world.dataset import CAPTION_REQUEST, corpus
from llava_stf.world.scene import CHARACTERS, PLACES

PIECES = 766
PLACES_OF_TWO_WORDS = [f"▁{place}".replace(" ", "▁") for place in PLACES if " " in place]
ROWS_MULTIPLE = 64


def train_tokenizer(images: int = 4000, seed: int = 0) -> PreTrainedTokenizerBase:
    """A LLaMA tokenizer for the text of the drawn images: byte-fallback BPE, `<unk>` 0, `<s>` 1, `</s>` 2.

    A place of two words is one piece, as any other place is: an option is compared by one token, and "top left" does
    not begin as "top". `<image>` and `<pad>` come behind the trained pieces, as in the llava-hf checkpoints.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(images, seed),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        user_defined_symbols=PLACES_OF_TWO_WORDS,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    # A piece that is asked for is a token of its own kind, which transformers takes for a special one: in a user's text
    # it would be quoted. As an ordinary piece it is what its two words merge to.
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined]
    for piece in pieces.pieces:
        if piece.piece in PLACES_OF_TWO_WORDS:
            piece.type = piece.NORMAL
    with TemporaryDirectory() as folder:
        Path(folder, "tokenizer.model").write_bytes(pieces.SerializeToString())
        Path(folder, "tokenizer_config.json").write_text(
            '{"tokenizer_class": "LlamaTokenizer", "legacy": false, "model_max_length": 1024, "unk_token": "<unk>",'
            ' "bos_token": "<s>", "eos_token": "</s>"}'
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def _sentences(images: int, seed: int) -> Iterator[str]:
    """The corpus with the chat's own words around every text, and every word alone, so that they become whole pieces.

    A line behind a colon begins as one behind a newline does: its first word has no word-start piece.
    """
    for text in corpus(images, seed):
        lines = [line for line in text.splitlines() if line]
        yield from (f"USER: {line} ASSISTANT: {line}" for line in lines)
        yield from (f":{line}" for line in lines)
        yield from re.findall(r"\w+", text)
    yield from [SYSTEM_PROMPT, CAPTION_REQUEST] * images


def unseen_tokens(tokenizer: PreTrainedTokenizerBase, images: int = 2000) -> list[int]:
    """Ids that no text about a drawn image has, and by which `SceneWords` says nothing: parts of pieces, bytes."""
    texts = [f"USER: {text}\n{text} ASSISTANT: {text}</s>" for text in corpus(images, seed=0)]
    seen = {token for ids in tokenizer([SYSTEM_PROMPT, CAPTION_REQUEST, *texts])["input_ids"] for token in ids}
    said = [*ORDERS, *(character.lower() for character in CHARACTERS)]
    seen |= {*tokenizer.convert_tokens_to_ids(said), *tokenizer.all_special_ids}
    return [token for token in range(len(tokenizer)) if token not in seen]


def language_config(tokenizer: PreTrainedTokenizerBase, *, layers: int = 6, width: int = 192) -> LlamaConfig:
    """The bundled model's language model: a LLaMA of 6 layers of width 192, with heads of 32.

    From object to rule to option to letter takes layers.
    """
    return LlamaConfig(
        vocab_size=-(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 48) * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def assemble_tiny(tower: Path | None, output: Path, *, language: Path | None = None, seed: int = 0) -> None:
    """Write the bundled LLaVA as it is before it sees images: the tower in `tower`, a new projector, all 64 patches.

    `language` is a plain LLaVA whose language model is taken, with its tokenizer; without it the language model is new
    and begins with lookup weights. Without `tower` that is new as well, for a language model that is told of scenes
    before there is a trained tower.

    What is trained on nothing is zeros, which say nothing and take no room in a wheel: the tower's blocks behind the
    state that is read, so that they are the identity, and the embeddings of `unseen_tokens`.

    Raises:
        ModelNotFoundError: `tower` or `language` is not there.
        CheckpointError: one of them cannot be loaded, or `language` is no plain LLaVA.
        LlavaStfError: `output` exists already, or cannot be written, or `seed` cannot be.
    """
    if language is not None and (found := read_config(language).model_type) != "llava":
        raise CheckpointError(f"Expected a plain LLaVA in {language}, found a model of type {found}.")
    refuse_existing(output)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer() if language is None else AutoTokenizer.from_pretrained(language)
    if tower is None:
        vision = CLIPVisionModel(tower_config())
    else:
        vision, _ = load_tower(locate(tower), {"dtype": torch.float32})
        vision.config._name_or_path = ""  # a folder of this machine
    if language is None:
        new = new_language_model(language_config(tokenizer))
        text_model, head = new.model, new.lm_head
        text_model.embed_tokens.weight.data[unseen_tokens(tokenizer)] = 0
    else:
        trained, _ = load_model(language, vision_tokens="all", device="cpu", dtype="float32")
        text_model, head = trained.model.language_model, trained.lm_head
    text = text_model.config
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision.config, text_config=text, image_token_index=image_token_id, image_seq_length=64
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(text_model.state_dict())
    model.lm_head.load_state_dict(head.state_dict())
    for block in tower_blocks(model.model.vision_tower)[config.vision_feature_layer + 1 :]:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    processor = LlavaStfProcessor(
        image_processor(vision.config.image_size),
        tokenizer,
        patch_size=vision.config.patch_size,
        chat_template=CHAT_TEMPLATE,
        fusion_window=1,
    )
    with publish(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} parameters, {text.vocab_size} rows, <image> is {image_token_id}")


def image_processor(side: int) -> LlavaImageProcessorPil:
    """LLaVA's `pad` mode: a square canvas in the mean colour, then CLIP's preprocessing to `side` px."""
    return LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def main() -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=Path, help="trained by pretrain_tower; default: a new tower")
    parser.add_argument("--language", type=Path, help="LLaVA whose language model is taken; default: a new one")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=seed, default=0)
    assemble_tiny(**vars(parser.parse_args()))


if __name__ == "__main__":
    run(main)
