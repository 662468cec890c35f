"""LLaVAs of random weights in the shapes of LLaVA-1.5: times depend on no trained value, so nothing is downloaded.

The random numbers are one block, repeated: filling 14 GB with fresh ones takes minutes on a CPU.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from llava_stf.errors import LlavaStfError
from llava_stf.io.memory import available_memory
from llava_stf.loading.precision import dtype_on_cpu

_CLIP_L = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
_TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
    "image_size": 112, "patch_size": 14,
}  # fmt: skip
# Vision tower and LLM; "medium" has LLaVA-1.5's grid and text length on a machine without a GPU, "tiny" is for trying.
SHAPES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "medium": (
        {**_CLIP_L, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4},
        {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16},
    ),
    "1b": (
        _CLIP_L,
        {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    "7b": (
        _CLIP_L,
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    ),
    "13b": (
        _CLIP_L,
        {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    ),
    "tiny": (
        _TINY,
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    ),
}
VOCABULARY, IMAGE_TOKEN, VIDEO_TOKEN = 32064, 32000, 32001
POSITIONS = {"llava": 4096, "llava_next": 8192, "llava_next_video": 8192, "llava_onevision": 32768}
# Tiles that an image is brought to at most, rows and columns of them, by model type.
_TILES = {
    "llava_next": [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)],
    "llava_next_video": [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)],
    "llava_onevision": [(rows, columns) for rows in range(1, 7) for columns in range(1, 7)],
}
MODEL_TYPES = tuple(POSITIONS)
_BLOCK = 2**22 + 3  # elements of the repeated block; odd, so that rows of a matrix differ
# Bytes of a quantized LLM weight, with its scales: NF4 keeps one for 64 weights.
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.57}


def shape_config(shape: str, model_type: str = "llava") -> LlavaConfig:
    """The config of a plain LLaVA of that shape; `model_type` is one of `MODEL_TYPES`.

    LLaVA-OneVision has a SigLIP of 27x27 patches, at the tiny shape of 7x7, and a Qwen2.

    Raises:
        LlavaStfError: there is no such shape.
    """
    if shape not in SHAPES:
        raise LlavaStfError(f"shape must be one of {', '.join(SHAPES)}, found '{shape}'.")
    vision, text = SHAPES[shape]
    language: Any = {**text, "num_key_value_heads": text["num_attention_heads"], "vocab_size": VOCABULARY}
    language["max_position_embeddings"] = POSITIONS[model_type]
    if model_type == "llava":
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**vision),
            text_config=LlamaConfig(**language),
            image_token_index=IMAGE_TOKEN,
            image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        )
    else:
        config = _tiled_config(model_type, dict(vision), language)
    config.text_config.eos_token_id = None  # an answer of random weights ends where it is told to
    return config


def _tiled_config(model_type: str, vision: dict[str, int], language: dict[str, Any]) -> Any:
    if model_type == "llava_onevision":
        vision["image_size"] = {336: 384, 112: 98}[vision["image_size"]]
    side = vision["image_size"]
    fields = {
        "image_token_index": IMAGE_TOKEN,
        "image_seq_length": (side // vision["patch_size"]) ** 2,
        "image_grid_pinpoints": [[side * rows, side * columns] for rows, columns in _TILES[model_type]],
    }
    if model_type == "llava_onevision":
        tower = SiglipVisionConfig(**vision, vision_use_head=False)
        del fields["image_seq_length"]
        return LlavaOnevisionConfig(
            vision_config=tower, text_config=Qwen2Config(**language), video_token_index=VIDEO_TOKEN, **fields
        )
    if model_type == "llava_next_video":
        fields["video_token_index"] = VIDEO_TOKEN
    kind = LlavaNextConfig if model_type == "llava_next" else LlavaNextVideoConfig
    return kind(vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**language), **fields)


def shape_image_processor(config: LlavaConfig) -> Any:
    """The image processor for a model of `shape_config`."""
    from transformers import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    if config.model_type == "llava_onevision":
        return LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=config.image_grid_pinpoints)
    sizes = {"size": {"shortest_edge": side}, "crop_size": square}
    if config.model_type == "llava":
        return LlavaImageProcessorPil(do_pad=True, **sizes)
    return LlavaNextImageProcessorPil(image_grid_pinpoints=config.image_grid_pinpoints, **sizes)


def build_model(
    shape: str,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    quantization: Literal["8bit", "4bit"] | None = None,
    model_type: str = "llava",
    config: LlavaConfig | None = None,
) -> LlavaForConditionalGeneration:
    """A plain LLaVA of that shape, or of `config`, with random weights, made on `device`.

    `quantization` is of the LLM alone.

    `model_type` is one of `MODEL_TYPES`. Without `dtype` it is what `load_model` takes of a checkpoint in bfloat16.

    Raises:
        LlavaStfError: the weights do not fit in memory.
    """
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device

    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(config or shape_config(shape, model_type))
        model = model.eval().requires_grad_(False)
    if dtype is None:
        elements = sum(parameter.numel() for parameter in model.parameters())
        on_cpu = device.type == "cpu" and quantization is None
        dtype = dtype_on_cpu(torch.bfloat16, elements) if on_cpu else torch.bfloat16
    quantized = _llm_layers(model) if quantization else {}
    _check_memory(shape, model, quantized, device, dtype, quantization)
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(device, dtype)
    for name, layer in quantized.items():
        model.set_submodule(name, _quantized(layer, _random(layer.weight.shape, block), device, dtype, quantization))
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            value = _initial(name, parameter.shape, block)
            set_module_tensor_to_device(model, name, device, value=value, dtype=dtype)
    for name, buffer in list(model.named_buffers()):
        set_module_tensor_to_device(model, name, device, value=buffer)
    model.generation_config.pad_token_id = 0
    return model


def _llm_layers(model: LlavaForConditionalGeneration) -> dict[str, nn.Linear]:
    """What `load_model` quantizes: the LLM's linear layers without the head."""
    return {
        f"model.language_model.{name}": module
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }


def _quantized(layer: nn.Linear, weight: Tensor, device: torch.device, dtype: torch.dtype, quantization: Any) -> Any:
    """A layer of bitsandbytes in place of a linear one, set as `load_model` sets it."""
    import bitsandbytes as bnb

    sizes = layer.in_features, layer.out_features
    new: Any
    if quantization == "8bit":
        new = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
        new.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        new = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
        new.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", module=new)
    return new.to(device)  # which quantizes


def _check_memory(
    shape: str,
    model: LlavaForConditionalGeneration,
    quantized: dict[str, nn.Linear],
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None,
) -> None:
    small = sum(layer.weight.numel() for layer in quantized.values())
    rest = sum(parameter.numel() for parameter in model.parameters()) - small
    needed = rest * dtype.itemsize + small * (_QUANTIZED_BYTES[quantization] if quantization else 0)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if free is not None and needed > free:
        raise LlavaStfError(
            f"The weights of shape '{shape}' take {needed / 2**30:.1f} GiB, and {device} has {free / 2**30:.1f} GiB "
            "free; take a smaller shape or dtype, or quantize."
        )


def _initial(name: str, shape: torch.Size, block: Tensor) -> Tensor:
    """Ones for the scales of norms, zeros for biases, random numbers for the rest."""
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape)
    return torch.zeros(shape) if name.endswith("bias") else _random(shape, block)


def _random(shape: torch.Size, block: Tensor) -> Tensor:
    value = torch.empty(shape.numel(), dtype=block.dtype, device=block.device)
    for piece in value.split(len(block)):
        piece.copy_(block[: len(piece)])
    return value.view(shape)
