"""Runs an export on ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from llava_stf.export.model import Array
from llava_stf.export.onnx_files import DECODER, EMBEDDINGS, VISION


class OnnxEngine:
    """The parts as sessions, which threads may share.

    Args:
        folder: of the export.
    """

    def __init__(self, folder: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # which users and commands set
        self._vision, self._embeddings, self._decoder = (
            ort.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in (VISION, EMBEDDINGS, DECODER)
        )

    def image_tokens(self, pixel_values: Array) -> Array:
        """As `Engine` says."""
        return self._vision.run(None, {"pixel_values": pixel_values})[0]

    def embeddings(self, ids: Array) -> Array:
        """As `Engine` says."""
        return self._embeddings.run(None, {"ids": ids})[0]

    def start(self) -> _State:
        """As `Engine` says."""
        return _State(self._decoder)


class _State:
    """The cache as arrays, see `EngineState`; the graph gives all logits, of which the wanted ones are kept."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._shapes = {port.name: port.shape for port in decoder.get_inputs()[3:]}  # [B, h, P, d]
        self._arrays: list[Array] = []

    def step(self, embeddings: Array, mask: Array, positions: Array, rows: Array, keep: int) -> Array:
        past = self._arrays
        if not past:
            past = [np.zeros((len(rows), h, 0, d), np.float32) for _, h, _, d in self._shapes.values()]
        elif not np.array_equal(rows, np.arange(len(past[0]))):
            past = [array[rows] for array in past]
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions}
        logits, *self._arrays = self._decoder.run(None, inputs | dict(zip(self._shapes, past, strict=True)))
        return logits[:, -keep:]

    def layers(self) -> list[Array]:
        return self._arrays

    def fill(self, layers: list[Array]) -> None:
        self._arrays = layers
