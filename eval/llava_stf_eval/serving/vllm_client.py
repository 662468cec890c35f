"""vLLM's own benchmark client, `vllm bench serve`, with the same questions under the same load."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava_stf.errors import LlavaStfError, MissingDependencyError
from llava_stf_eval.serving.client import Target
from llava_stf_eval.serving.outcomes import Outcome
from llava_stf_eval.serving.workload import Load, Question

VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
_KEPT_OF_LOG = 1500  # characters


def has_vllm() -> bool:
    """Whether vLLM is installed beside this package."""
    return find_spec("vllm") is not None


def require_vllm() -> None:
    """Check that vLLM is there.

    Raises:
        MissingDependencyError: it is not.
    """
    if not has_vllm():
        raise MissingDependencyError("vLLM is not installed here; pip install 'llava-stf[vllm]'.")


def drive(target: Target, questions: Sequence[Question], load: Load, *, new_tokens: int, seed: int) -> list[Outcome]:
    """As `client.drive`, in a process of vLLM's client, which keeps its own clock.

    A request that fails is an outcome.

    Raises:
        LlavaStfError: it fails as a whole; it holds the end of the log.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, result = Path(folder) / "questions.jsonl", Path(folder) / "result.json"
        data.write_text("".join(json.dumps({"content": question.content}) + "\n" for question in questions))
        arguments = _arguments(target, load, new_tokens, seed)
        arguments += ["--dataset-path", str(data), "--num-prompts", str(len(questions))]
        arguments += ["--result-dir", folder, "--result-filename", result.name]
        ran = subprocess.run([*VLLM, "bench", "serve", *arguments], capture_output=True, text=True, check=False)
        if not result.is_file():
            raise LlavaStfError(f"vllm bench serve failed: {(ran.stdout + ran.stderr)[-_KEPT_OF_LOG:]}")
        return read_result(json.loads(result.read_text()))


def _arguments(target: Target, load: Load, new_tokens: int, seed: int) -> list[str]:
    when = ["--max-concurrency", str(load.clients)] if load.rate is None else ["--request-rate", str(load.rate)]
    return [
        "--backend", "openai-chat", "--base-url", target.url, "--endpoint", "/v1/chat/completions",
        "--model", target.model, "--skip-tokenizer-init",
        "--dataset-name", "custom_image", "--enable-multimodal-chat", "--disable-shuffle", "--no-oversample",
        "--custom-output-len", str(new_tokens), "--temperature", "0", "--seed", str(seed), *when,
        "--burstiness", "1", "--save-result", "--save-detailed", "--disable-tqdm",
        "--extra-body", json.dumps(target.further(new_tokens)),
    ]  # fmt: skip


def read_result(result: dict[str, Any]) -> list[Outcome]:
    """The outcomes in a detailed result of `vllm bench serve`, whose errors end with the reason."""
    begin = min(result["start_times"])
    rows = zip(
        result["start_times"], result["ttfts"], result["itls"], result["latencies"], result["input_lens"],
        result["output_lens"], result["errors"], strict=True,
    )  # fmt: skip
    return [
        Outcome(start - begin, None, (), latency, 0, 0, error.strip().splitlines()[-1])
        if error
        else Outcome(start - begin, first, tuple(gaps), latency, prompt, output)
        for start, first, gaps, latency, prompt, output, error in rows
    ]
