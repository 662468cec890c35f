"""What a batch is: the rows, the question, the model, and all that its results depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from llava_stf.batch.rows import Rows, open_rows
from llava_stf.errors import DataError

_WEIGHT_FILES = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
_BLOCK, _BLOCKS = 2**12, 2**10  # bytes, and how many of them of each file: 4 MiB, and smaller files as a whole
# What can differ between two commands that go on with each other's output: where things are, and how fast it goes.
_NOT_IN_MANIFEST = ("input", "output", "batch_size", "device", "vllm_options")


@dataclass(frozen=True)
class BatchJob:
    """What is asked, of whom, and where the answers go.

    Args:
        input: a folder of images, JSON lines or parquet, see `open_rows`.
        output: the folder of shards.
        question: for rows without one of their own.
        images: the folder that image paths start from; default: the one that `input` is or lies in.
        allow_urls: whether images are fetched from http(s) URLs.
        shard_size: rows in a shard, the unit that appears whole and that a run which was killed loses.
        engine: what generates.
        model, vision_tokens, dtype, quantization, device: as in `load_model`.
        batch_size: rows that are asked together.
        max_new_tokens: longest answer.
        vllm_options: further arguments of vLLM's `LLM`, for instance `tensor_parallel_size`.
    """

    input: Path
    output: Path
    question: str | None = None
    images: Path | None = None
    allow_urls: bool = False
    shard_size: int = 256
    engine: Literal["transformers", "vllm"] = "transformers"
    model: str = "tiny"
    vision_tokens: int | Literal["all"] | None = None
    dtype: str | None = None
    quantization: Literal["8bit", "4bit"] | None = None
    device: str | None = None
    batch_size: int = 16
    max_new_tokens: int = 128
    vllm_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.vllm_options and self.engine != "vllm":
            raise DataError(f"vllm_options are for the engine vllm, found {self.engine}.")

    def rows(self) -> Rows:
        """The input rows. Raises as `open_rows`."""
        return open_rows(self.input, question=self.question, images=self.images, allow_urls=self.allow_urls)

    def manifest(self, rows: Rows) -> dict[str, Any]:
        """All that the results depend on."""
        kept = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NOT_IN_MANIFEST}
        kept["images"] = None if self.images is None else str(self.images)
        return {"rows": len(rows), "input_sha256": rows.fingerprint, "weights": _weights_digest(self.model), **kept}


def _weights_digest(model: str) -> str | None:
    """What tells the weights in a folder from others of the same shapes; `None` for what is no folder.

    Of a large file blocks all over it are read: whatever part was trained on, some of them lie in it.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\n".encode())
        with path.open("rb") as file:
            for place in range(0, size, max(_BLOCK, size // _BLOCKS)):
                file.seek(place)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()
