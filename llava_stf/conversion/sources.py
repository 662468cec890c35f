"""Detect the format of a checkpoint by what stands in its folder and by the names of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from llava_stf.errors import CheckpointError, ExportError, ModelNotFoundError
from llava_stf.io.exports import is_export
from llava_stf.io.json import read_json
from llava_stf.io.weights import StoredTensor, read_index, weight_files
from llava_stf.models.llava_stf.keys import adapter_name
from llava_stf.models.registry import CONFIGS

_LORA_FILES = ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "non_lora_trainables.bin")
_POINTER, _POINTER_BYTES = b"version https://git-lfs", 1024
_ADAPTER_FILES = ("mm_projector.bin", "mm_projector.safetensors")


class Format(StrEnum):
    """Formats of checkpoints."""

    STF = "llava_stf"
    LLAVA = "llava"
    ORIGINAL = "original LLaVA"
    LLAMA = "llama"
    ADAPTER = "projector adapter"
    TILES = "LLaVA-NeXT"


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk: its format, folder, config.json (empty where there is none) and weight files."""

    format: Format
    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def config_file(self) -> Path:
        """Where `config` stands, or would."""
        return self.folder / "config.json"

    @property
    def has_tower(self) -> bool:
        """Whether it describes and holds its vision tower, as every Hugging Face folder does."""
        return self.format in (Format.STF, Format.LLAVA, Format.TILES)

    def index(self) -> dict[str, StoredTensor]:
        """Every tensor by its name on disk; see `read_index`."""
        return read_index(list(self.files))


def detect_format(path: Path) -> Source:
    """The checkpoint at `path` and its format; `path` is its folder, or one weight file beside its config.json.

    Raises:
        ModelNotFoundError: nothing is there.
        ExportError: it is an export.
        CheckpointError: it is LoRA, no LLaVA, damaged, or has no weights.
    """
    if not path.exists():
        raise ModelNotFoundError(f"No checkpoint at {path}: there is no such file or folder; check the path.")
    if is_export(path):
        raise ExportError(
            f"{path} is an export, which answers and has no weights to train, patch, convert or serve with vLLM; take "
            "the model that it was exported from."
        )
    _refuse_pointers(path if path.is_dir() else path.parent)
    folder, files = (path, weight_files(path)) if path.is_dir() else (path.parent, [path])
    if not files:
        lora = [name for name in _LORA_FILES if (folder / name).is_file()]
        if lora:
            raise CheckpointError(
                f"{folder} holds LoRA weights ({lora[0]}), which are a difference to a base model; merge them into it "
                "with the tool that trained them (PEFT's merge_and_unload, LLaVA's merge_lora_weights.py) and take the "
                "merged folder. PEFT's also go on a loaded base, by PeftModel.from_pretrained(llava.model, folder)."
            )
        files = [folder / name for name in _ADAPTER_FILES if (folder / name).is_file()][:1]
    if not files:
        raise CheckpointError(
            f"{folder} holds no weights: expected model.safetensors, pytorch_model.bin, their shards with an index, or "
            f"mm_projector.bin{_inner(folder)}."
        )
    config_file = folder / "config.json"
    if path.is_file() or files[0].name in _ADAPTER_FILES:
        names = read_index(files)
        if names and all(adapter_name(name).startswith("model.mm_projector") for name in names):
            config = read_json(config_file) if config_file.is_file() else {}
            return Source(Format.ADAPTER, folder, config, tuple(files))
    config = read_json(config_file)
    return Source(_format_of(config, config_file), folder, config, tuple(files))


def _refuse_pointers(folder: Path) -> None:
    """Raise `CheckpointError` where files were cloned without Git LFS: a text of three lines stands for each."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size < _POINTER_BYTES and file.read_bytes().startswith(_POINTER):
            raise CheckpointError(
                f"{file} is a pointer of Git LFS and not the file itself: run `git lfs pull` there, or fetch the "
                "repository with `hf download`."
            )


def _inner(folder: Path) -> str:
    """The end of a sentence about a folder without weights: which folder in it has some."""
    found = sorted(config.parent.name for config in folder.glob("*/config.json"))
    return f"; its subfolder {found[0]} may be meant" if found else ""


def _format_of(config: dict[str, Any], file: Path) -> Format:
    model_type = config.get("model_type")
    if model_type == "llava_stf":
        return Format.STF
    if model_type in ("llava_llama", "llava_mistral", "llava_qwen") or (
        model_type == "llava" and "mm_vision_tower" in config
    ):
        return Format.ORIGINAL
    if model_type == "llava":
        return Format.LLAVA
    if model_type == "llama":
        return Format.LLAMA
    if isinstance(model_type, str) and model_type in CONFIGS:
        return Format.TILES
    raise CheckpointError(
        f"{file}: model type {model_type!r} is none of those this package reads: llava_llama, llava_mistral and "
        "llava_qwen (the authors' format), llava (Hugging Face's or the original), "
        f"{', '.join(name for name in CONFIGS if name != 'llava')}, and llama as the base of an adapter."
    )
