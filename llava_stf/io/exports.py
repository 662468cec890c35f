"""What an export says of itself, and whether all of it is there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from llava_stf.errors import ExportError, nearest
from llava_stf.io.json import read_json
from llava_stf.io.publish import write_json

Format = Literal["openvino", "onnx"]
Weights = Literal["fp32", "fp16", "int8", "int4"]
KvCache = Literal["f32", "u8"]

MANIFEST = "llava_stf_export.json"
VERSION = 1  # of what stands in the folder; an older or newer one is not guessed at


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of an export.

    Attributes:
        version: of the folder's layout.
        package: version of this package that wrote it.
        format: what runs it.
        weights: their precision.
        kv_cache: precision of the keys and values that decoding keeps.
        vision_tokens: what an image takes of the prompt, always.
        files: size in bytes of everything else in the folder.
    """

    version: int = VERSION
    package: str
    format: Format
    weights: Weights
    kv_cache: KvCache
    vision_tokens: int
    files: dict[str, int]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, which is what a machine needs free to run it, and some more for a request."""
        return sum(size for name, size in self.files.items() if Path(name).suffix in (".bin", ".onnx", ".data"))


def is_export(path: Path) -> bool:
    """Whether a folder is an export, whole or not."""
    return (path / MANIFEST).is_file()


def write_manifest(folder: Path, **fields: Any) -> None:
    """Write the manifest of a folder with everything else in place; `fields` are those of `Manifest` but `files`."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, dataclasses.asdict(Manifest(files=files, **fields)))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export whose files are all there.

    Raises:
        ExportError: it is of another version, a file is missing or has another size than was written.
        CheckpointError: it is no JSON.
    """
    content = read_json(folder / MANIFEST)
    if content.get("version") != VERSION:
        raise ExportError(
            f"{folder} is an export of version {content.get('version')}, written by llava_stf "
            f"{content.get('package')}; this one reads version {VERSION}: export the model again."
        )
    try:
        manifest = Manifest(**content)
        for name, size in manifest.files.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes"
                raise ExportError(f"{folder} is not whole: {name} {state}, expected {size} bytes; export it again.")
    except (TypeError, AttributeError) as error:
        raise ExportError(f"{folder / MANIFEST} is no manifest of an export ({error}); export it again.") from error
    check_choices(manifest.format, manifest.weights, manifest.kv_cache)
    return manifest


def check_choices(format: str, weights: str, kv_cache: str) -> None:
    """Check what a model is to be exported to.

    Raises:
        ExportError: there is no such format or precision, or not in that format.
    """
    for what, value, kind in (
        ("format", format, Format),
        ("weights", weights, Weights),
        ("kv_cache", kv_cache, KvCache),
    ):
        if value not in get_args(kind):
            raise ExportError(f"Unknown {what} '{value}': {nearest(value, get_args(kind))}")
    if format == "onnx" and weights not in ("fp32", "int8"):
        raise ExportError(f"weights '{weights}' are for OpenVINO; ONNX is written with fp32 or int8.")
    if format == "onnx" and kv_cache != "f32":
        raise ExportError("kv_cache 'u8' is OpenVINO's; with ONNX the cache is of f32.")
