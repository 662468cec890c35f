"""What a batch is: the rows, the question, the model, and all that its results depend on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from llava_stf.batch.places import Place, open_place
from llava_stf.batch.rows import Rows, open_rows
from llava_stf.errors import DataError
from llava_stf.io.requirements import __version__
from llava_stf.models.fusion.detail import DETAILS

# What can differ between two commands that go on with each other's output: where things are, and how fast it goes.
_NOT_IN_MANIFEST = ("input", "output", "batch_size", "device")
_VLLM_SPEED = {
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
    *("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "enforce_eager", "enable_prefix_caching"),
    *("swap_space", "num_gpu_blocks_override", "disable_log_stats"),
}


@dataclass(frozen=True)
class BatchJob:
    """What is asked, of whom, and where the answers go.

    Args:
        input: a folder of images, JSON lines or parquet, see `open_rows`; where, see `open_place`.
        output: the folder of shards; where, see `open_place`.
        question: for rows without one of their own.
        images: the folder that image paths start from, as `input`; default: the one that `input` is or lies in.
        allow_urls: whether images are fetched from http(s) URLs.
        shard_size: rows in a shard, the unit that appears whole and that a run which was killed loses.
        engine: what generates.
        model: as in `load_model`.
        vision_tokens: as in `load_model`, or a word for one of the model's counts, as in `LlavaStf.ask`.
        max_vision_tokens: most tokens of all images of a row.
        dtype: as in `load_model`.
        quantization: as in `load_model`.
        device: as in `load_model`.
        batch_size: rows that are asked together.
        max_new_tokens: longest answer.
        vllm_options: further arguments of vLLM's `LLM`, for instance `tensor_parallel_size`.
    """

    input: str | Place
    output: str | Place
    question: str | None = None
    images: str | Place | None = None
    allow_urls: bool = False
    shard_size: int = 256
    engine: Literal["transformers", "vllm"] = "transformers"
    model: str = "tiny"
    vision_tokens: int | Literal["all", "low", "high", "auto"] | None = None
    max_vision_tokens: int | None = None
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
        if self.engine == "vllm" and (self.vision_tokens in DETAILS or self.max_vision_tokens is not None):
            raise DataError("Words for vision_tokens and max_vision_tokens are for transformers; give vLLM a count.")
        if self.vllm_options and self.engine != "vllm":
            raise DataError(f"vllm_options are for the engine vllm, found {self.engine}.")

    def rows(self) -> Rows:
        """The input rows.

        Raises:
            DataError: as `open_rows`.
            MissingDependencyError: as `open_rows`.
        """
        return open_rows(self.input, question=self.question, images=self.images, allow_urls=self.allow_urls)

    def manifest(self, rows: Rows) -> dict[str, Any]:
        """All that the results depend on; costs the reading of the weights once.

        Raises:
            ModelNotFoundError: as `model_digest`.
        """
        from llava_stf.loading.digest import model_digest

        kept = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NOT_IN_MANIFEST}
        kept["images"] = None if self.images is None else str(open_place(self.images))
        kept["vllm_options"] = {name: value for name, value in self.vllm_options.items() if name not in _VLLM_SPEED}
        return {
            "rows": len(rows),
            "input_sha256": rows.fingerprint,
            **kept,
            "model_sha256": model_digest(self.model),
            "versions": _versions(self.engine),
        }


def _versions(engine: str) -> dict[str, str]:
    """Of what makes prompts of rows, pixels of images, and answers of both."""
    names = ["transformers", "tokenizers", "pillow", *(["vllm"] if engine == "vllm" else [])]
    found = {"llava-stf": __version__}
    for name in names:
        with suppress(PackageNotFoundError):  # vLLM: loading says so
            found[name] = version(name)
    return found
