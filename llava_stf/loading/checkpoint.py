"""From a name to a checkpoint: where it is, in which format, its config, and the window that it is to have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import LlavaConfig

from llava_stf.conversion.cache import converted
from llava_stf.conversion.locate import locate
from llava_stf.conversion.sources import Format, Source, detect_format
from llava_stf.conversion.state import build_config
from llava_stf.errors import CheckpointError, LlavaStfError
from llava_stf.export.load import read_export_config
from llava_stf.io.exports import is_export
from llava_stf.io.json import read_json
from llava_stf.loading.bundled import BUNDLED, bundled_folder, is_bundled
from llava_stf.loading.lora import is_lora_folder, read_lora_folder
from llava_stf.models.fusion.budget import resolve_windows
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.registry import CONFIGS, TRAINED_PLAIN

logger = logging.getLogger(__name__)


def read_config(name_or_path: str | Path, *, vision_tower: str | Path | None = None) -> LlavaConfig:
    """The config of a model that `load_model` loads as a whole, without its weights.

    Raises:
        ExportError: it is an export, which has none.
        LlavaStfError: as `load_model`.
    """
    return config_of(loadable(locate_checkpoint(name_or_path), vision_tower))


def read_config_to_ask(name_or_path: str | Path, *, vision_tower: str | Path | None = None) -> LlavaConfig:
    """The config of whatever `load_model` loads: also of an export, and of LoRA weights with their base.

    Raises:
        LlavaStfError: as `load_model`.
    """
    path = locate_checkpoint(name_or_path)
    if is_export(path):
        return read_export_config(path)
    return read_lora_folder(path).config if is_lora_folder(path) else config_of(loadable(path, vision_tower))


def is_llava(name_or_path: str | Path) -> bool:
    """Whether a name or folder is a LLaVA's, plain or fused, and no language model or tower.

    Raises:
        LlavaStfError: as `load_model`.
    """
    if is_bundled(name_or_path):
        return True
    file = locate(name_or_path, weights=False) / "config.json"
    return file.is_file() and str(read_json(file).get("model_type")) in (*CONFIGS, "llava_llama")


def locate_checkpoint(name: str | Path, subfolder: str | None = None, revision: str | None = None) -> Path:
    """The folder of a model, fetched from the hub where it is there; `load_model` says what a name may be."""
    if not is_bundled(name):
        return locate(name, subfolder=subfolder, revision=revision)
    if subfolder is not None or revision is not None:
        raise LlavaStfError(f"'{name}' is a bundled model, which has neither subfolder nor revision.")
    if Path(name).exists():
        logger.warning("'%s' is the bundled model; for the folder of that name here give './%s'.", name, name)
    return bundled_folder(str(name))


def loadable(path: Path, vision_tower: str | Path | None = None) -> Source:
    """The checkpoint of a folder in a format that transformers loads, converted where it is in another."""
    source = detect_format(path)
    if source.format is Format.ORIGINAL:
        return detect_format(converted(path, vision_tower))
    if vision_tower is not None:
        raise LlavaStfError(f"{source.folder} has its vision tower inside and takes no other (vision_tower).")
    if source.format is Format.ADAPTER:
        raise CheckpointError(
            f"{source.files[0]} holds a projector only; load its base model with init='{source.files[0]}', or convert "
            "both into one checkpoint."
        )
    if source.format is Format.LLAMA:
        raise CheckpointError(f"{source.folder} is a language model without a vision tower; expected a LLaVA.")
    return source


def config_of(source: Source) -> LlavaConfig:
    """The config of a checkpoint that `loadable` gave."""
    return build_config(source.config_file, CONFIGS[source.config["model_type"]], source.config)


def own_vision_tokens(config: LlavaConfig, name: str | Path) -> Literal["all"] | None:
    """What is meant where no vision tokens are asked for: all of a plain LLaVA that was trained here, or bundled.

    `None` is a fused model's own count, and a quarter of any other plain LLaVA's.
    """
    if is_bundled(name):
        return BUNDLED[str(name)]
    trained_plain = getattr(config, TRAINED_PLAIN, False) and not isinstance(config, FusionConfig)
    return "all" if trained_plain else None


def window_to_patch(
    config: LlavaConfig, name: str | Path, vision_tokens: int | Literal["all"] | Sequence[int] | None
) -> int | list[int] | None:
    """Side of the windows to patch a model to, or `None` to leave it as it is; a fused config takes its default.

    Args:
        config: of the model.
        name: that it was asked for by; a bundled one has vision tokens of its own.
        vision_tokens: of `load_model`.
    """
    if vision_tokens is None:
        vision_tokens = own_vision_tokens(config, name)
    window = resolve_windows(config, vision_tokens)
    if isinstance(config, FusionConfig):
        assert isinstance(window, int)  # a list is refused above
        config.use_window(window)
        return None
    return None if window == 1 else window
