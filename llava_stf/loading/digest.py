"""What tells one model from another, whatever it is called: a digest of all that is read when it is loaded."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llava_stf.conversion.locate import is_hub_id, locate
from llava_stf.errors import ModelNotFoundError
from llava_stf.io.json import parse_json
from llava_stf.loading.bundled import bundled_folder, is_bundled
from llava_stf.loading.lora import ADAPTER_CONFIG

_READ = (".safetensors", ".xml", ".onnx", ".data", ".bin", ".pt", ".pth", ".json", ".jinja", ".model", ".txt")
_TEMPLATES = "additional_chat_templates"
# Where a model names another one that belongs to it: LoRA weights their base, the authors' format its tower.
_NAMED = {ADAPTER_CONFIG: "base_model_name_or_path", "config.json": "mm_vision_tower"}
_THREADS = 8  # hashing leaves Python's lock


def model_digest(name_or_path: str | Path) -> str:
    """SHA-256 of a model's weights, configs, tokenizer, processor and templates, and of the base and tower it names.

    Every byte is read, so that no change of any of them passes unseen; that costs about what reading the weights once
    costs, a second for each 1 to 2 GB and core. Where the files lie does not matter. What stands on the hub is told
    by its commit, without reading.

    Args:
        name_or_path: as in `load_model`.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelNotFoundError: there is no such model, or the hub cannot be reached and has not been before.
    """
    if is_bundled(name_or_path):
        return _folder_digest(bundled_folder(str(name_or_path)))
    path = Path(name_or_path).expanduser()
    if not path.exists() and is_hub_id(str(name_or_path)):
        return _hub_digest(str(name_or_path))
    path = locate(name_or_path)
    return _folder_digest(path) if path.is_dir() else _file_digest(path)


def _hub_digest(repo: str) -> str:
    """Of the commit, after which the hub's client names the folder of a snapshot."""
    folder = locate(repo, weights=False)
    return hashlib.sha256("\0".join([repo, folder.name, *_named_digests(folder)]).encode()).hexdigest()


def _folder_digest(folder: Path) -> str:
    paths = sorted(
        path
        for place in (folder, folder / _TEMPLATES)
        if place.is_dir()
        for path in place.iterdir()
        if path.suffix in _READ and path.is_file()
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(_file_digest, paths))
    names = [path.relative_to(folder).as_posix() for path in paths]
    lines = [f"{name}\0{digest}" for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256("\n".join([*lines, *_named_digests(folder)]).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named_digests(folder: Path) -> list[str]:
    """Of the models that this one names; the name alone where there is none, since loading may not need it."""
    digests = []
    for file, key in _NAMED.items():
        named = _read(folder / file).get(key)
        if isinstance(named, str):
            beside = folder / named  # where a tower's relative path starts from
            try:
                digests.append(model_digest(beside if file != ADAPTER_CONFIG and beside.exists() else named))
            except ModelNotFoundError:
                digests.append(named)
    return digests


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one for what is none: loading says what is wrong with it."""
    try:
        content = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
