"""How long the first token of an answer takes; nothing else here looks at a clock."""

from __future__ import annotations

import statistics
import time

import torch

from llava_stf.inference.pipeline import LlavaStf
from llava_stf.inference.turns import Images, as_list, load_visual, turn_about


def measure_first_token(llava: LlavaStf, images: Images, question: str, *, runs: int = 3) -> float:
    """Median seconds to the first token over `runs`, after one run to warm up, or three where generation is compiled.

    Measured from the preprocessed prompt on the device to the first new id: vision tower, projector, prefill and the
    choice of the id. Reading the image, tokenising and the copy to the device are excluded.
    """
    turn = turn_about(question, as_list(images, required=True))
    inputs = llava.encode([[turn]], [[load_visual(source) for source in as_list(images)]])
    warm_up = 1 if llava._compiled is None else 3  # compile, record CUDA graphs, replay
    times = []
    for _ in range(warm_up + runs):
        start = _clock(llava.model.device)
        llava.generate(inputs, max_new_tokens=1)
        times.append(_clock(llava.model.device) - start)
    return statistics.median(times[warm_up:])


def _clock(device: torch.device) -> float:
    """Seconds, once everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
