r"""One timed request: an image and ids in, an answer of fixed length out, stage by stage.

    preprocessing   images to pixels on the device
    tower           \
    projector        | the model's own submodules, called once for a prompt
    prefill         /  (the decoder layers)
                    an engine's graphs: a projector lies in that of the tower and takes no time of its own
    rest            what lies between them: selecting, placing, the head, the choice of the id, `generate` itself
    first_token     from pixels and ids on the device to the first new id
    decode          one later token, the mean over the answer
    end_to_end      from the image to the last id

A clock is read only after everything queued on the device is done. On a CUDA device that would keep kernels from being
queued ahead, so there the parts of the first token are timed in a second request, and first token, decoding and the
whole in one that runs undisturbed; elsewhere one request gives all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from llava_stf.export.model import EngineCache, ExportedLlava
from llava_stf.export.parts import head_width
from llava_stf.models.fusion.modeling import CACHE
from llava_stf_eval.speed.engines import timed_engine
from llava_stf_eval.speed.shown import Shown
from llava_stf_eval.speed.variants import Variant

# Seconds that pass; or that the process computes, in all its threads, to which other programs do not add.
Clock = Literal["wall", "cpu"]
STAGES = ("preprocessing", "tower", "projector", "prefill", "rest", "first_token", "decode", "end_to_end")
PARTS = ("tower", "projector", "prefill")
_MODULES = {"tower": "vision_tower", "projector": "multi_modal_projector", "prefill": "language_model"}


@dataclass(frozen=True)
class Case:
    """What is asked of every variant alike: attention implementation, batch, text tokens, new tokens."""

    attention: str
    batch_size: int
    text_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Request:
    """The same images and text for every variant: `text_ids` is [B, T], int64, on the host.

    `images` holds for each prompt its image, or the frames of its video.
    """

    images: list[list[Image]]
    text_ids: Tensor
    image_processor: Any
    shown: Shown = field(default_factory=Shown)
    clock: Clock = "wall"


@dataclass(frozen=True)
class Measured:
    """Seconds of each stage; and, read off the cache itself, one prompt's positions in each LLM layer and its bytes.

    `peak_bytes` is the most memory in use at once, weights included; `None` where the system does not tell.
    """

    seconds: dict[str, float]
    llm_tokens: tuple[int, ...]
    kv_bytes: int
    peak_bytes: int | None


def measure_once(variant: Variant, request: Request, case: Case) -> Measured:
    """Runs and times one request."""
    device = variant.model.device
    now = partial(_now, device, request.clock)
    seconds: dict[str, float] = {}
    with _peak_memory(device) as peak:
        start = now()
        prepared = request.shown.prepare(request.image_processor, request.images)
        pixels = {
            name: value.to(device, variant.model.dtype) if value.is_floating_point() else value.to(device)
            for name, value in prepared.items()
        }
        ready = now()
        seconds["preprocessing"] = ready - start
        inputs = _inputs(variant, request, pixels)
        apart = device.type == "cuda"
        with nullcontext() if apart else _timed_parts(variant.model, seconds, now):
            generated, clock = _generate(variant, inputs, case.new_tokens, now)
        seconds["first_token"] = of_parts = clock.first - clock.start
        if apart:
            with _timed_parts(variant.model, seconds, now):
                _, parts_clock = _generate(variant, inputs, 1, now)
            of_parts = parts_clock.first - parts_clock.start
    seconds["rest"] = of_parts - sum(seconds[part] for part in PARTS)
    seconds["decode"] = (clock.end - clock.first) / max(1, case.new_tokens - 1)
    seconds["end_to_end"] = seconds["preprocessing"] + clock.end - clock.start
    tokens, per_token = _cached(variant, generated[CACHE])
    tokens = [length - (case.new_tokens - 1) for length in tokens]
    kv_bytes = sum(each * length for each, length in zip(per_token, tokens, strict=True))
    return Measured({stage: seconds[stage] for stage in STAGES}, tuple(tokens), kv_bytes, peak.bytes)


def _cached(variant: Variant, cache: Any) -> tuple[list[int], list[int]]:
    """Positions of each layer, and bytes of each position; what an engine keeps to itself is told by its length."""
    if isinstance(cache, EngineCache):
        text = variant.model.config.text_config
        each = 2 * text.num_key_value_heads * head_width(text) * variant.cache_itemsize
        return [cache.length] * text.num_hidden_layers, [each] * text.num_hidden_layers
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    lengths = [keys.shape[-2] for keys, _ in layers]
    return lengths, [(keys.nbytes + values.nbytes) // (keys.shape[0] * keys.shape[-2]) for keys, values in layers]


def _inputs(variant: Variant, request: Request, pixels: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text with the variant's places of images or videos in its middle, and the pixels."""
    batch, length = request.text_ids.shape
    config = variant.model.config
    marker = config.image_token_id if request.shown.frames is None else config.video_token_id
    places = torch.full((batch, variant.setting.places), marker)
    ids = torch.cat([request.text_ids[:, : length // 2], places, request.text_ids[:, length // 2 :]], dim=1)
    ids = ids.to(variant.model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}


class _FirstTokenClock(StoppingCriteria):
    """Reads the clock once the first new id is chosen, and stops nothing.

    Not a streamer, which newer versions of transformers hand an id only when the next one is on its way; and the later
    ids are left alone, so that a GPU's queue is waited for once and at the end.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.first = 0.0
        self.start = now()
        self.end = 0.0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if not self.first:
            self.first = self.now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _generate(
    variant: Variant, inputs: dict[str, Tensor], new_tokens: int, now: Callable[[], float]
) -> tuple[Any, _FirstTokenClock]:
    """Greedy, exactly `new_tokens` long, whatever the model would have to say."""
    clock = _FirstTokenClock(now)
    generated = variant.model.generate(
        **inputs, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        stopping_criteria=StoppingCriteriaList([clock]), return_dict_in_generate=True,
    )  # fmt: skip
    clock.end = now()
    return generated, clock


@contextmanager
def _timed_parts(model: Any, seconds: dict[str, float], now: Callable[[], float]) -> Iterator[None]:
    """Times the first call of each submodule in `PARTS`; the LLM's later calls are decoding.

    A method that works inside the tower calls its layers one by one: then the tower is what lies between the patch
    embedding and the projector.
    """
    if isinstance(model, ExportedLlava):
        with timed_engine(model, seconds, now):
            yield
        return
    starts: dict[str, float] = {}

    def before(part: str, module: Any, args: Any) -> None:
        starts.setdefault(part, now())

    def after(part: str, module: Any, args: Any, output: Any) -> None:
        if part not in seconds:
            seconds[part] = now() - starts[part]

    def before_projector(module: Any, args: Any) -> None:
        after("tower", module, args, None)

    handles = [
        model.model.vision_tower.get_input_embeddings().register_forward_pre_hook(partial(before, "tower")),
        model.model.multi_modal_projector.register_forward_pre_hook(before_projector),
    ]
    for part, attribute in _MODULES.items():
        module = getattr(model.model, attribute)
        handles.append(module.register_forward_pre_hook(partial(before, part)))
        handles.append(module.register_forward_hook(partial(after, part)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _now(device: torch.device, clock: Clock) -> float:
    """Seconds, once everything queued on the device is done."""
    if clock == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class _Peak:
    bytes: int | None = None


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[_Peak]:
    """The most memory in use meanwhile: allocated on a CUDA device, else resident of the process (Linux)."""
    peak = _Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")  # the high-water mark becomes what is resident now
    except OSError:
        yield peak
        return
    yield peak
    lines = status.read_text().splitlines()
    peak.bytes = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
