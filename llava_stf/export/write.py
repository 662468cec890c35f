"""Export a LLaVA for OpenVINO or ONNX Runtime: a folder that `load_model` loads, and OpenVINO GenAI too."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedConfig

from llava_stf.errors import DeviceMemoryError, ExportError
from llava_stf.export.dependencies import require
from llava_stf.export.model import ExportedLlava
from llava_stf.io.exports import Format, KvCache, Weights, check_choices, write_manifest
from llava_stf.io.memory import available_memory
from llava_stf.io.publish import publish, refuse_existing, write_json
from llava_stf.io.requirements import __version__
from llava_stf.models.fusion.budget import tokens_per_image
from llava_stf.models.fusion.tiles import has_tiles
from llava_stf.models.registry import family_of_config
from llava_stf.reduction.model import ReducedLlavaModel


def export_model(
    llava: Iterable[Any],
    dst: str | Path,
    *,
    format: Format = "openvino",
    weights: Weights = "fp32",
    kv_cache: KvCache = "f32",
) -> Path:
    """Write a model in a form that OpenVINO or ONNX Runtime runs, whole or not at all.

    Args:
        llava: a model and its processor, as a pipeline unpacks to them, in float32 on the CPU:
            `load_model(..., device="cpu", dtype="float32")`, plain, fused, pooled, or reduced
            by a method whose tokens are a function of the pixels. It is exported at its default number of tokens.
        dst: folder to write; it must not exist.
        format: `"openvino"` or `"onnx"`.
        weights: `"fp32"`; `"fp16"` (half the disk, computed in 32 bits); `"int8"`; `"int4"`, the language model's in
            groups of 128, its head, embeddings and the vision part at 8 bits. ONNX: `"fp32"` or `"int8"`.
        kv_cache: `"f32"`, exact, or `"u8"`, a quarter of its memory and answers that may differ.

    Returns:
        The folder.

    Raises:
        ExportError: no such format or precision, or the model has no such form.
        MissingDependencyError: the extra of the format is not installed.
        LlavaStfError: `dst` exists or cannot be written.
    """
    check_choices(format, weights, kv_cache)
    dst = Path(dst)
    refuse_existing(dst)
    model, processor = llava
    _check_model(model, processor)
    require(format, writing=True)
    with publish(dst) as folder:
        if format == "openvino":
            from llava_stf.export.openvino_files import write_openvino, write_tokenizer

            write_openvino(model, folder, weights, kv_cache)
            write_tokenizer(_tokenizer(processor), folder)
        else:
            from llava_stf.export.onnx_files import write_onnx

            write_onnx(model, folder, weights)
        _write_processor(processor, folder)
        _plain_config(model.config, tokens_per_image(model.config)).save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        write_manifest(
            folder, package=__version__, format=format, weights=weights, kv_cache=kv_cache,
            vision_tokens=tokens_per_image(model.config),
        )  # fmt: skip
    return dst


def check_memory(config: PreTrainedConfig) -> None:
    """Check that a model of this config can be exported on this machine, before its weights are read.

    Raises:
        ExportError: it has no such form.
        DeviceMemoryError: it cannot.
    """
    _check_family(config)
    with torch.device("meta"):
        model = _class_of(config)(config)
    needed = _PEAK * 4 * sum(parameter.numel() for parameter in model.parameters())
    free = available_memory()
    if free is not None and needed > free:
        raise DeviceMemoryError(
            f"Exporting this model takes about {needed / 2**30:.1f} GiB, its weights in float32 and those of one part "
            f"once more, and {free / 2**30:.1f} GiB are free; export it on a larger machine, the folder runs here."
        )


_PEAK = 2  # times the weights in float32, that an export holds at its worst


def _class_of(config: LlavaConfig) -> type[LlavaForConditionalGeneration]:
    family = family_of_config(config)
    return family.model if isinstance(config, family.config) else LlavaForConditionalGeneration


def _check_family(config: PreTrainedConfig) -> None:
    if not isinstance(config, LlavaConfig) or has_tiles(config):
        raise ExportError(
            f"Expected a LLaVA of LLaVA-1.5's build, found '{config.model_type}': an export has one number of tokens "
            "for every image, and takes neither tiles nor videos."
        )


def _check_model(model: LlavaForConditionalGeneration, processor: LlavaProcessor | None) -> None:
    if isinstance(model, ExportedLlava):
        raise ExportError("This model is an export already; export the model that it was made from.")
    if processor is None:
        raise ExportError("This checkpoint came without a tokenizer, and its export could not be asked; add one.")
    _check_family(model.config)
    reduction = vars(model.model).get("reduction") if isinstance(model.model, ReducedLlavaModel) else None
    if reduction is not None and reduction.prompt_tokens != reduction.vision_tokens:
        raise ExportError(
            f"'{reduction.method.name}' drops tokens inside the language model, which an export runs as it is; choose "
            "a method that shortens the image's part of the prompt."
        )
    if reduction is not None and reduction.method.attention_bias:
        raise ExportError("attention_bias is a mask that a graph does not take; export the method without it.")
    weights = next(model.parameters())
    if getattr(model, "hf_quantizer", None) is not None or weights.dtype != torch.float32 or model.device.type != "cpu":
        raise ExportError(
            f"Expected a model in float32 on the CPU, found {weights.dtype} on {model.device}; load it with "
            "device='cpu', dtype='float32' and without quantization."
        )
    text = model.config.text_config
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(text, "sliding_window", None):
        raise ExportError("The language model attends over a sliding window, which an export does not know yet.")


def _plain_config(config: LlavaConfig, vision_tokens: int) -> LlavaConfig:
    """A plain LLaVA's config, as OpenVINO GenAI reads it; it tells fusion no more, which the graph has inside."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(LlavaConfig)}
    plain = LlavaConfig(**copy.deepcopy(fields) | {"image_seq_length": vision_tokens})
    plain.architectures = ["LlavaForConditionalGeneration"]
    return plain


def _tokenizer(processor: LlavaProcessor) -> object:
    """The tokenizer with the chat template, which OpenVINO GenAI looks for in it."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = processor.chat_template
    return tokenizer


def _write_processor(processor: LlavaProcessor, folder: Path) -> None:
    """The processor as a plain LLaVA's, and the image's size and statistics where OpenVINO GenAI looks for them."""
    LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=processor.num_additional_image_tokens,
    ).save_pretrained(folder)
    image = processor.image_processor
    side = {"height": image.crop_size["height"], "width": image.crop_size["width"]}
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": side, "size": {"shortest_edge": side["height"]}, "image_mean": list(image.image_mean),
            "image_std": list(image.image_std), "do_pad": bool(getattr(image, "do_pad", False)),
        },
    )  # fmt: skip
