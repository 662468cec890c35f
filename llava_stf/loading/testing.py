"""A LLaVA of a few thousand random weights, for tests and for trying code that needs any model at all."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaTokenizer

CHARACTERS = "▁\n" + string.digits + string.ascii_letters + string.punctuation


def tiny_tokenizer() -> LlamaTokenizer:
    """A LLaMA tokenizer of single characters and bytes, with `<image>` and `<pad>` behind its vocabulary."""
    from transformers import LlamaTokenizer

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    tokenizer = LlamaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], legacy=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # first, as in published checkpoints
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def write_tiny_llava(folder: Path, *, stf: bool = True, grid: int = 4, positions: int = 512, seed: int = 0) -> Path:
    """Writes a random LLaVA with 3 blocks of width 16 and an LLM of width 32 to `folder`, and its processor.

    Images have `grid` x `grid` patches of 14 px, the LLM has `positions` positions. With `stf` two by two patches are
    fused into one token, otherwise it is a plain LLaVA.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaImageProcessorPil,
        LlavaProcessor,
    )

    from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE
    from llava_stf.reduction.apply import apply_stf

    tokenizer = tiny_tokenizer()
    side = 14 * grid
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=side, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=positions, initializer_range=0.2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=grid * grid,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    image_processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor = LlavaProcessor(
        image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    if stf:
        apply_stf(model, processor, init="random", seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# The turns of Mistral's LLaVA-NeXT.
MISTRAL_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image>\n{% else %}{{ item['text'] }}{% endif %}{% endfor %} [/INST]"
    "{% else %} {{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)


def tiny_llava_next(
    *, llm: str = "mistral", depth: int = 8, width: int = 32, seed: int = 0, **fields: Any
) -> tuple[Any, Any]:
    """A random plain LLaVA-NeXT with a tower of width 16, and its processor.

    Args:
        llm: `"mistral"`, `"llama"`, `"qwen2"`, or another model type of LLaMA's build.
        depth: blocks of the tower.
        width: of the LLM; 64 gives its two heads the width that vLLM's attention on a processor needs.
        seed: of the weights.
        **fields: of the config.

    Returns:
        `LlavaNextForConditionalGeneration` and `LlavaNextProcessor`; tiles are of 56 px, 4x4 patches, and an image has
        up to five.
    """
    import torch
    from transformers import (
        AutoConfig,
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer, side = tiny_tokenizer(), 56
    pinpoints = [[side * rows, side * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=depth, num_attention_heads=2, image_size=side,
        patch_size=14, initializer_range=0.2,
    )  # fmt: skip
    text = AutoConfig.for_model(
        llm, vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints, image_seq_length=16, **fields,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config).eval()
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        image_processor, tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=MISTRAL_TEMPLATE,
    )  # fmt: skip
    return model, processor


def tiny_vipllava(*, depth: int = 12, seed: int = 0) -> tuple[Any, Any]:
    """A random plain ViP-LLaVA with a tower of width 16 and an LLM of width 32, and its processor.

    Args:
        depth: blocks of the tower.
        seed: of the weights.

    Returns:
        `VipLlavaForConditionalGeneration` and `LlavaProcessor`; images have 4x4 patches.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaImageProcessorPil,
        LlavaProcessor,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE

    tokenizer, side = tiny_tokenizer(), 56
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=depth, num_attention_heads=2, image_size=side,
        patch_size=14, initializer_range=0.2,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    config = VipLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = VipLlavaForConditionalGeneration(config).eval()
    images = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    return model, processor
