"""Hands a `llava-stf serve` over to `vllm serve`: the same model and, where vLLM has them, the same options."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava_stf.conversion.sources import Format, detect_format
from llava_stf.errors import LlavaStfError, MissingDependencyError
from llava_stf.loading import bundled_folder, is_bundled, read_config
from llava_stf.models.fusion.tiles import takes_videos
from llava_stf.vllm_plugin.served import check_served

# Options that vLLM has no counterpart of, how they are written, and what to do instead.
_UNKNOWN = {
    "quantization": ("--quantization", "serve a quantized folder that vLLM reads"),
    "device": ("--device", "set CUDA_VISIBLE_DEVICES"),
    "vision_tokens": (
        "--vision-tokens",
        "save the model with the counts it shall have, and ask for one with mm_processor_kwargs",
    ),
    "max_queue": ("--max-queue", "put a proxy with a limit in front"),
    "max_body_bytes": ("--max-body-megabytes", "put a proxy with a limit in front"),
    "max_image_bytes": ("--max-image-megabytes", "put a proxy with a limit in front"),
    "max_vision_tokens": ("--max-vision-tokens", "bound the images of a request, with --max-images"),
    "max_cache_bytes": (
        "--max-cache-megabytes",
        "vLLM keeps what fits into its KV cache; give it --kv-cache-memory-bytes",
    ),
    "max_new_tokens": ("--max-new-tokens", "let requests say max_tokens"),
    "allow_urls": (
        "--allow-urls",
        "vLLM would fetch from private addresses, too; run vllm serve --allowed-media-domains yourself",
    ),
    "share_port": ("--share-port", "give vllm serve --data-parallel-size, after --"),
    "ui": ("--ui", "run the page on the transformers engine"),
    "compare_model": ("--compare-model", "run the page on the transformers engine"),
}


def vllm_command(model: str, given: Mapping[str, Any], more: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """The command line of `vllm serve`, and environment variables to add.

    Args:
        model: "tiny", "tiny-full", or a folder of a saved LLaVA-STF or plain LLaVA in Hugging Face's format.
        given: options of `llava-stf serve` that were given, by the names of `ServeOptions`, and what it takes beside.
        more: further options, of vLLM's own.

    Raises:
        MissingDependencyError: vLLM is not installed.
        LlavaStfError: an option has no counterpart, vLLM cannot read the model, or not on so many ranks.
    """
    for name, (option, advice) in _UNKNOWN.items():
        if name in given:
            raise LlavaStfError(f"--engine vllm has nothing for {option}: {advice}.")
    if given.get("dtype") == "stored":
        raise LlavaStfError("--engine vllm has nothing for --dtype stored: name the precision of the files.")
    folder = _folder(model)
    config = read_config(folder)
    check_served(config, _ranks(more))
    if find_spec("vllm") is None:
        raise MissingDependencyError("--engine vllm needs vLLM: pip install 'llava-stf[vllm]'")
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    command += ["--served-model-name", given.get("served_name", model)]
    command += ["--host", given.get("host", "127.0.0.1"), "--port", str(given.get("port", 8000))]
    limits = {"image": given.get("max_images", 8), **({"video": 1} if takes_videos(config) else {})}
    command += ["--limit-mm-per-prompt", json.dumps(limits)]
    # Greedy unless told otherwise, as the transformers engine; and no image is fetched, whatever its host.
    command += ["--override-generation-config", json.dumps({"temperature": 0.0})]
    command += ["--allowed-media-domains", "none.invalid"]
    if "dtype" in given:
        command += ["--dtype", given["dtype"]]
    if "max_batch" in given:
        command += ["--max-num-seqs", str(given["max_batch"])]
    if given.get("log_prompts"):
        command += ["--enable-log-requests"]
    environment = {"VLLM_MAX_IMAGE_PIXELS": str(given.get("max_image_pixels", 50_000_000))}
    if "api_key" in given:
        environment["VLLM_API_KEY"] = given["api_key"]  # not as an argument, which every user of the machine can read
    return [*command, *more], environment


def _ranks(more: Sequence[str]) -> int:
    """The tensor-parallel size among options of vLLM's, 1 where there is none that can be read."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-tp", "--tensor-parallel-size", "--tensor_parallel_size", type=int, default=1)
    try:
        return parser.parse_known_args(more)[0].tensor_parallel_size
    except ArgumentError:  # vLLM says so
        return 1


def exec_vllm(model: str, given: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Replaces this process by `vllm serve` with further options of its own; errors as `vllm_command`."""
    command, environment = vllm_command(model, given, more)
    if advice := advice_for(_folder(model)):
        print(advice, file=sys.stderr, flush=True)
    os.execve(command[0], command, {**os.environ, **environment})


def advice_for(folder: Path) -> str | None:
    """What to do if vLLM refuses a plain LLaVA that transformers 5 saved: vLLM 0.32 expects older names."""
    source = detect_format(folder)
    towers = [name for name in source.index() if "vision_tower." in name]
    if source.format is not Format.LLAVA or any(".vision_model." in name for name in towers):
        return None
    return (
        "vLLM up to 0.32 does not know the names of this plain LLaVA's vision tower. If it says so: "
        "llava_stf.apply_pooling(model, processor, window=1), saved again, is the same model for this package's plugin."
    )


def _folder(model: str) -> Path:
    folder = bundled_folder(model) if is_bundled(model) else Path(model).expanduser()
    if not folder.is_dir():
        raise LlavaStfError(
            f"vLLM serves saved folders, found '{model}'; bring it into one first: llava-stf convert '{model}' FOLDER"
        )
    source = detect_format(folder)
    if source.format not in (Format.STF, Format.LLAVA, Format.TILES):
        raise LlavaStfError(
            f"vLLM reads Hugging Face's format, and {folder} is another; first: llava-stf convert '{model}' FOLDER"
        )
    return folder
