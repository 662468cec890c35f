"""Load an export, ready to be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, LlavaProcessor

from llava_stf.conversion.processors import read_processor
from llava_stf.errors import CheckpointError, DeviceMemoryError, ExportError
from llava_stf.export.dependencies import require
from llava_stf.export.model import Engine, ExportedLlava, ExportedLlavaConfig, ExportedProcessor
from llava_stf.io.exports import Manifest, read_manifest
from llava_stf.io.json import read_json
from llava_stf.io.memory import available_memory
from llava_stf.models.fusion.budget import patch_grid
from llava_stf.models.llava_stf.vocabulary import remember_tokenizer

# Options of `load_model` that belong to weights in PyTorch, and what they may be here.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "device": (None, "cpu"), "dtype": (None, "auto", "float32"), "quantization": (None,),
    "attn_implementation": (None,), "init": ("pool",), "vision_tower": (None,), "kernels": ("auto", "torch"),
    "compile": (False,),
}  # fmt: skip


def load_export(folder: Path, vision_tokens: Any = None, **options: Any) -> tuple[ExportedLlava, LlavaProcessor]:
    """The model and the processor of an export.

    Args:
        folder: of the export.
        vision_tokens: its own number, or `None`.
        **options: others of `load_model`, at their defaults.

    Raises:
        ExportError: it is of another version, not whole, or an option is for weights in PyTorch.
        FusionError: it has another number of tokens.
        MissingDependencyError: what runs it is not installed.
        DeviceMemoryError: its weights do not fit into memory.
    """
    manifest = read_manifest(folder)
    for name, value in options.items():
        if str(value).removeprefix("torch.") not in map(str, _ALLOWED[name]):
            raise ExportError(f"{folder} is an export, whose {name} cannot be chosen; found {name}={value}.")
    config = read_export_config(folder)
    config.num_image_tokens([], patch_grid(config) ** 2 if vision_tokens == "all" else vision_tokens)
    processor = read_export_processor(folder)
    _check_memory(folder, manifest)
    model = ExportedLlava(config, _engine(folder, manifest), GenerationConfig.from_pretrained(folder))
    remember_tokenizer(model, processor)
    return model, processor


def read_export_config(folder: Path) -> ExportedLlavaConfig:
    """The config of an export.

    Raises:
        ExportError: as `load_export`.
    """
    manifest = read_manifest(folder)
    own = {"vision_tokens": manifest.vision_tokens, "kv_cache": manifest.kv_cache}
    return ExportedLlavaConfig.from_dict(read_json(folder / "config.json"), **own)


def read_export_processor(folder: Path) -> LlavaProcessor:
    """The processor of an export.

    Raises:
        ExportError: as `load_export`.
        CheckpointError: its files cannot be read.
    """
    config = read_export_config(folder)
    processor, _ = read_processor(folder, config)
    if processor is None:
        raise CheckpointError(f"{folder} has no processor; export the model again.")
    if config.vision_feature_select_strategy != "default":
        return processor
    exported = ExportedProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=config.vision_config.patch_size,
        chat_template=processor.chat_template,
        fusion_window=1,
    )
    exported.vision_tokens = config.vision_tokens
    return exported


def _engine(folder: Path, manifest: Manifest) -> Engine:
    require(manifest.format)
    if manifest.format == "openvino":
        from llava_stf.export.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(folder, exact=manifest.weights in ("fp32", "fp16"))
    from llava_stf.export.onnx_engine import OnnxEngine

    return OnnxEngine(folder)


def _check_memory(folder: Path, manifest: Manifest) -> None:
    free = available_memory()
    if free is not None and manifest.weight_bytes > free:
        raise DeviceMemoryError(
            f"The weights of {folder} take {manifest.weight_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are "
            "free; export the model with smaller weights (int8, int4)."
        )
