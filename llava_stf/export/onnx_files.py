"""An export for ONNX Runtime: the three parts, the decoder's cache as inputs and outputs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch.export import ExportedProgram
from transformers import LlavaForConditionalGeneration

from llava_stf.errors import ExportError
from llava_stf.export.parts import trace_decoder, trace_embeddings, trace_vision

VISION, EMBEDDINGS, DECODER = (f"{part}.onnx" for part in ("vision", "embeddings", "decoder"))


def write_onnx(model: LlavaForConditionalGeneration, folder: Path, weights: str) -> None:
    """Writes the three parts.

    Args:
        model: float32, on the CPU.
        folder: where to.
        weights: `"fp32"`, or `"int8"`: 8 bits, unsigned and a scale for each matrix, and activations that are
            quantized as they come.

    Raises:
        ExportError: the model is no fixed graph, or ONNX has no form for it.
    """
    _write(trace_vision(model), folder / VISION, ["pixel_values"], ["image_tokens"], weights)
    _write(trace_embeddings(model), folder / EMBEDDINGS, ["ids"], ["inputs_embeds"], weights)
    past, present = cache_names(model.config.text_config.num_hidden_layers)
    inputs = ["inputs_embeds", "attention_mask", "position_ids", *past]
    _write(trace_decoder(model), folder / DECODER, inputs, ["logits", *present], weights)


def cache_names(layers: int) -> tuple[list[str], list[str]]:
    """Names of the decoder's inputs and outputs that hold the cache: keys of all layers, then values."""
    kinds = [f"{kind}.{layer}" for kind in ("key", "value") for layer in range(layers)]
    return [f"past.{name}" for name in kinds], [f"present.{name}" for name in kinds]


def _write(program: ExportedProgram, path: Path, inputs: list[str], outputs: list[str], weights: str) -> None:
    exact = path if weights == "fp32" else path.with_name(f"exact_{path.name}")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of operators of a torchvision that is not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own deprecations
            exported = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
        assert exported is not None  # with dynamo
        exported.save(exact, external_data=True)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"ONNX has no form for this model: {reason}") from error
    finally:
        logger.setLevel(level)
    if weights == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # Unsigned, because the products of signed 8 bits saturate on AVX2.
        quantize_dynamic(exact, path, weight_type=QuantType.QUInt8, use_external_data_format=True)
        for file in exact.parent.glob("exact_*"):
            file.unlink()
