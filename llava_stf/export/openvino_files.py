"""An export for OpenVINO: the parts as its IR files, under the names that OpenVINO GenAI reads.

The decoder keeps its cache itself, as states that are read and assigned at every call; `beam_idx` [B] says which row of
the former call each row goes on from. Precisions are written down here and never left to a default: `save_model` would
halve every constant, rotary frequencies included, and the CPU's cache would be of 8 bits.
"""

from __future__ import annotations

import logging
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import op
from openvino import opset13 as ops
from torch.export import ExportedProgram
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from llava_stf.errors import ExportError
from llava_stf.export.parts import head_width, trace_decoder, trace_embeddings, trace_vision

VISION, EMBEDDINGS, DECODER = (
    f"openvino_{part}_model.xml" for part in ("vision_embeddings", "text_embeddings", "language")
)
CACHE = "cache."  # what names of states begin with
_GROUP = 128  # int4 weights that share a scale
_LARGE = 4096  # elements from which on a constant is a weight to be halved, and no rotary frequencies or norm


def write_openvino(model: LlavaForConditionalGeneration, folder: Path, weights: str, kv_cache: str) -> None:
    """Writes the three parts.

    Args:
        model: float32, on the CPU.
        folder: where to.
        weights: `"fp32"`, `"fp16"`, `"int8"`, or `"int4"`.
        kv_cache: `"f32"` or `"u8"`.

    Raises:
        ExportError: the model is no fixed graph, or OpenVINO has no form for it.
    """
    vision = _named(_convert(trace_vision(model)), ["pixel_values"], "last_hidden_state")
    save_part(vision, folder / VISION, weights, kv_cache)
    embeddings = _named(_convert(trace_embeddings(model)), ["input"], "inputs_embeds")
    save_part(embeddings, folder / EMBEDDINGS, weights, kv_cache)
    decoder = _stateful(_convert(trace_decoder(model)), model.config.text_config)
    save_part(decoder, folder / DECODER, weights, kv_cache)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer and its inverse as graphs, which OpenVINO GenAI needs and this package does not."""
    from openvino_tokenizers import convert_tokenizer

    there, back = convert_tokenizer(tokenizer, with_detokenizer=True)
    ov.save_model(there, folder / "openvino_tokenizer.xml", compress_to_fp16=False)
    ov.save_model(back, folder / "openvino_detokenizer.xml", compress_to_fp16=False)


def _convert(program: ExportedProgram) -> ov.Model:
    try:
        return ov.convert_model(program)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO has no form for this model: {str(error).strip().splitlines()[-1]}") from error


def _named(model: ov.Model, inputs: list[str], output: str) -> ov.Model:
    for port, name in zip(model.inputs, inputs, strict=False):  # those of a cache get no names
        port.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({output})
    return model


def _stateful(model: ov.Model, text: Any) -> ov.Model:
    """The decoder with the inputs and outputs of its cache made states."""
    _named(model, ["inputs_embeds", "attention_mask", "position_ids"], "logits")
    inputs, pasts = model.inputs[:3], model.inputs[3:]
    logits, *presents = model.outputs
    rows = ops.parameter([-1], ov.Type.i32)
    rows.output(0).get_tensor().set_names({"beam_idx"})
    first = ops.constant(0, dtype=np.int64)
    batch = ops.gather(ops.shape_of(inputs[0].get_node()), ops.constant([0], dtype=np.int64), first)
    sizes = ops.constant([text.num_key_value_heads, 0, head_width(text)], dtype=np.int64)
    # The CPU compiles no state that is reordered unless it begins with the rows of the call.
    empty = ops.broadcast(ops.constant(0.0, dtype=np.float32), ops.concat([batch, sizes], 0))
    assigned = []
    for number, (past, present) in enumerate(zip(pasts, presents, strict=True)):
        state = op.util.VariableInfo()
        state.variable_id = f"{CACHE}{number}"
        state.data_type = ov.Type.f32
        state.data_shape = ov.PartialShape([-1, text.num_key_value_heads, -1, head_width(text)])
        variable = op.util.Variable(state)
        state_rows = ops.gather(op.read_value(empty, variable), rows, first).output(0)
        for user in past.get_node().output(0).get_target_inputs():
            user.replace_source_output(state_rows)
        assigned.append(op.assign(present.get_node().input_value(0).get_node(), variable))
    parameters = [port.get_node() for port in inputs]
    return ov.Model([logits.get_node()], assigned, [*parameters, rows], "decoder")


def save_part(model: ov.Model, path: Path, weights: str, kv_cache: str) -> None:
    """Writes a part, whose weights are still those of float32, in a precision.

    `"int4"` is for the decoder, whose head stays at 8 bits, as do the other parts.
    """
    if weights == "int4" and path.name != DECODER:
        weights = "int8"
    if weights == "fp16":
        _halve(model)
    elif weights != "fp32":
        _compress(model, weights)
    model.set_rt_info(kv_cache, ["runtime_options", "KV_CACHE_PRECISION"])
    ov.save_model(model, path, compress_to_fp16=False)


def _compress(model: ov.Model, weights: str) -> None:
    import nncf

    nncf.set_log_level(logging.ERROR)
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    if weights == "int4":
        # Widths that 128 does not divide take the largest group that does; without this nothing would be compressed.
        fallback = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        options = {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": _GROUP, "ratio": 1}
        options["advanced_parameters"] = fallback
    with redirect_stdout(StringIO()):  # it draws bars there
        nncf.compress_weights(model, **options)


def _halve(model: ov.Model) -> None:
    """Weights of matrices and tables in 16 bits; what is computed stays in 32."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32 and _size(node) >= _LARGE:
            half = ops.convert(ops.constant(node.data.astype(np.float16)), "f32")
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(half.output(0))


def _size(node: Any) -> int:
    return int(np.prod(node.get_output_shape(0)))
