"""What a task's generation settings mean to `generate`, and what went wrong where memory ran out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# lmms-eval's own LLaVA takes it for tasks that set none; an answer to "a single word or phrase" ends long before.
MAX_NEW_TOKENS = 1024
_SAMPLING = ("temperature", "top_p", "top_k")
_GENERATION = ("num_beams", "repetition_penalty", "length_penalty", "min_new_tokens")
_ELSEWHERE = {"until", "max_new_tokens", "do_sample", "image_aspect_ratio", *_SAMPLING, *_GENERATION}


def unknown_settings(settings: dict[str, Any]) -> list[str]:
    """Names of the settings that have no meaning here."""
    return sorted(set(settings) - _ELSEWHERE)


def generate_options(settings: dict[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
    """Most new tokens, stop strings and keywords of `generate` for a task's generation settings."""
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    temperature = settings.get("temperature") or 0
    sampling = bool(settings.get("do_sample", temperature > 0)) and temperature > 0
    options = {name: settings[name] for name in _GENERATION if settings.get(name) is not None}
    if sampling:
        options |= {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
    return int(settings.get("max_new_tokens") or MAX_NEW_TOKENS), stops, options | {"do_sample": sampling}


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the CPU torch says so with a RuntimeError of its allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
    )
