"""LLaVAs that take videos, of a few thousand random weights, for tests; see `llava_stf.loading.testing`.

Each comes with this package's processor for all tokens, since transformers' own cannot be built without torchvision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llava_stf.loading.testing import tiny_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaTokenizer, PreTrainedConfig

# The turns of Qwen2's LLaVA-OneVision.
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for item in message['content'] if item['type'] == 'image' %}<image>{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'video' %}<video>{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ '\n' + item['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Those of Vicuna's LLaVA-NeXT-Video and Video-LLaVA.
VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% for item in message['content'] %}"
    "{% if item['type'] == 'text' %}{{ item['text'] }}{% else %}<{{ item['type'] }}>\n{% endif %}{% endfor %} "
    "{% else %}ASSISTANT: {{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tiny_llava_onevision(
    *, grid: int = 5, depth: int = 4, width: int = 32, seed: int = 0, **fields: Any
) -> tuple[Any, Any]:
    """A random plain LLaVA-OneVision with a SigLIP of width 16 and a Qwen2, and its processor.

    Args:
        grid: patches of 14 px along the side of a tile, 27 in the published models.
        depth: blocks of the tower.
        width: as in `tiny_llava_next`.
        seed: of the weights.
        **fields: of the config.

    Returns:
        `LlavaOnevisionForConditionalGeneration` and `LlavaOnevisionStfProcessor`; an image has up to 9 tiles, which
        are shrunk to the tokens of 2.
    """
    import torch
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    from llava_stf.models.llava_onevision.processing_llava_onevision_stf import LlavaOnevisionStfProcessor

    tokenizer, side = _tokenizer("<|im_start|>", "<|im_end|>"), 14 * grid
    tokenizer.eos_token = "<|im_end|>"
    pinpoints = [[side * rows, side * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    vision = SiglipVisionConfig(**_vision(side, depth), vision_use_head=False)
    config = LlavaOnevisionConfig(
        **_shared(vision, tokenizer, "qwen2", width),
        image_grid_pinpoints=pinpoints,
        **{"vision_aspect_ratio": "anyres_max_2", **fields},
    )
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    images = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_grid_pinpoints=pinpoints, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    options = {"vision_aspect_ratio": config.vision_aspect_ratio, "fusion_window": 1}
    return model, LlavaOnevisionStfProcessor(images, tokenizer, chat_template=QWEN_TEMPLATE, **options)


def tiny_llava_next_video(*, grid: int = 4, depth: int = 8, seed: int = 0, **fields: Any) -> tuple[Any, Any]:
    """A random plain LLaVA-NeXT-Video with a CLIP of width 16 and a LLaMA of width 32, and its processor.

    Args:
        grid: patches of 14 px along the side of a tile, 24 in the published models.
        depth: blocks of the tower.
        seed: of the weights.
        **fields: of the config.

    Returns:
        `LlavaNextVideoForConditionalGeneration` and `LlavaNextVideoStfProcessor`; an image has up to 5 tiles.
    """
    import torch
    from transformers import CLIPVisionConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    from llava_stf.models.llava_next_video.processing_llava_next_video_stf import LlavaNextVideoStfProcessor

    tokenizer, side = _tokenizer(), 14 * grid
    pinpoints = [[side * rows, side * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    vision = CLIPVisionConfig(**_vision(side, depth))
    shared = _shared(vision, tokenizer, "llama")
    config = LlavaNextVideoConfig(**shared, image_grid_pinpoints=pinpoints, **{"image_seq_length": grid**2, **fields})
    torch.manual_seed(seed)
    model = LlavaNextVideoForConditionalGeneration(config).eval()
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=pinpoints
    )
    return model, LlavaNextVideoStfProcessor(images, tokenizer, chat_template=VICUNA_TEMPLATE, fusion_window=1)


def tiny_video_llava(*, grid: int = 4, depth: int = 8, seed: int = 0, **fields: Any) -> tuple[Any, Any]:
    """A random plain Video-LLaVA with two CLIPs of width 16 and a LLaMA of width 32, and its processor.

    Args:
        grid: patches of 14 px along the side of an image, 16 in the published model.
        depth: blocks of the towers.
        seed: of the weights.
        **fields: of the config.

    Returns:
        `VideoLlavaForConditionalGeneration` and `VideoLlavaStfProcessor`.
    """
    import torch
    from transformers import CLIPVisionConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

    from llava_stf.models.video_llava.processing_video_llava_stf import VideoLlavaStfProcessor

    tokenizer, side = _tokenizer(), 14 * grid
    shared = _shared(CLIPVisionConfig(**_vision(side, depth)), tokenizer, "llama")
    config = VideoLlavaConfig(**shared, **{"image_seq_length": grid**2, **fields})
    torch.manual_seed(seed)
    model = VideoLlavaForConditionalGeneration(config).eval()
    images = VideoLlavaImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return model, VideoLlavaStfProcessor(images, tokenizer, chat_template=VICUNA_TEMPLATE, fusion_window=1)


def _tokenizer(*control_tokens: str) -> LlamaTokenizer:
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    tokens = [AddedToken(name, special=True) for name in ("<video>", *control_tokens)]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


def _vision(side: int, depth: int) -> dict[str, Any]:
    return {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": depth, "num_attention_heads": 2,
        "image_size": side, "patch_size": 14, "initializer_range": 0.2,
    }  # fmt: skip


def _shared(vision: PreTrainedConfig, tokenizer: LlamaTokenizer, llm: str, width: int = 32) -> dict[str, Any]:
    """What every config is made of."""
    from transformers import AutoConfig

    text = AutoConfig.for_model(
        llm, vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    places = {name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("image", "video")}
    return {
        "vision_config": vision,
        "text_config": text,
        **{f"{name}_token_index": place for name, place in places.items()},
    }
