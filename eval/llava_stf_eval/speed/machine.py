"""Where and with what a time was measured, and what else the machine was doing."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import torch

from llava_stf_eval.measurement.machine import machine, versions


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, memory, the GPU that is used, versions, and how busy the machine was when the measurement began."""
    return {
        **machine(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_average": load_average(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def load_average() -> list[float]:
    """Processes that ran or waited to, on average over the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]
