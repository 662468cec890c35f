"""The model of a checkpoint that transformers loads, with all its weights and no others."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from llava_stf.conversion.processors import GENERATION, read_generation
from llava_stf.conversion.sources import Format, Source
from llava_stf.conversion.state import check_tensors, public_tensors
from llava_stf.errors import CheckpointError, DeviceMemoryError, one_line
from llava_stf.io.json import without_byte_order_marks
from llava_stf.loading.precision import dtype_on_cpu, stored_dtype
from llava_stf.models.fusion.tiles import has_tiles
from llava_stf.models.llava_stf.keys import HUGGING_FACE, is_unused
from llava_stf.models.llava_stf.settings import check_settings


def read_model(source: Source, config: LlavaConfig, options: dict[str, Any]) -> LlavaForConditionalGeneration:
    """The model.

    Args:
        source: its checkpoint.
        config: that it gets.
        options: for `from_pretrained`.

    Raises:
        CheckpointError: weights are missing, of another shape, or belong to nothing; or a file is damaged.
        DeviceMemoryError: the device has no room for it.
    """
    options = {**options, "dtype": dtype_to_load(source, options)}
    check_settings(source.folder / GENERATION, read_generation(source.folder))  # transformers passes over a broken one
    if "quantization_config" not in source.config:
        _check_headers(source, config)
    try:
        with without_byte_order_marks(source.folder) as readable:
            model, report = AutoModelForImageTextToText.from_pretrained(
                readable, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"{source.folder} does not fit into the memory of {options['device_map']['']}: free some, load it with "
            f"quantization='4bit' or a smaller dtype, or take device='cpu' ({str(error).partition('.')[0]})."
        ) from error
    except Exception as error:  # as in build_config
        source.index()  # names the file if one is damaged
        raise CheckpointError(f"{source.folder} cannot be loaded: {one_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = sorted(key for key in map(str, report[problem]) if has_tiles(config) or not is_unused(key))
        if found:
            raise CheckpointError(
                f"{source.folder} does not fit its config.json: {len(found)} {problem.replace('_', ' ')}, the first is "
                f"{found[0]}."
            )
    return model


def dtype_to_load(source: Source, options: dict[str, Any]) -> str | torch.dtype:
    """The dtype as transformers is told it, whose "auto" is that of the files; the arguments are `read_model`'s."""
    if options["dtype"] not in ("auto", "stored"):
        return options["dtype"]
    quantized = "quantization_config" in options or "quantization_config" in source.config
    if options["dtype"] == "stored" or quantized or options["device_map"][""].type != "cpu":
        return "auto"
    shapes = (tensor.final_shape for tensor in source.index().values() if tensor.dtype.is_floating_point)
    return dtype_on_cpu(stored_dtype(source), sum(torch.Size(shape).numel() for shape in shapes))


def _check_headers(source: Source, config: LlavaConfig) -> None:
    """Name weights that do not fit before memory is taken for others, or before 4 bits hide their shapes."""
    parts = (config.vision_config.model_type, config.text_config.model_type)
    if source.format is not Format.TILES and parts == ("clip_vision_model", "llama"):
        check_tensors(source, config, public_tensors(source.index(), HUGGING_FACE))
