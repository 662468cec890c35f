"""Runs an export on OpenVINO, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops

from llava_stf.export.model import Array
from llava_stf.export.openvino_files import CACHE, DECODER, EMBEDDINGS, VISION

_ALL = 2**31 - 1  # logits kept of a step, where all are


class OpenVinoEngine:
    """The parts, compiled. A request of its own for every cache, so that threads may share this.

    Args:
        folder: of the export. The cache has the precision that stands in its files.
        exact: whether to compute in float32 on every CPU. One with bfloat16 products would take these, whatever the
            files say of it.
    """

    def __init__(self, folder: Path, *, exact: bool) -> None:
        core = ov.Core()
        # One answer at a time on all threads, and these as many as PyTorch takes, which users and commands set.
        core.set_property("CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()})
        if exact:
            core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._vision = core.compile_model(folder / VISION, "CPU")
        self._embeddings = core.compile_model(folder / EMBEDDINGS, "CPU")
        self._decoder = core.compile_model(_with_keep(core.read_model(folder / DECODER)), "CPU")

    def image_tokens(self, pixel_values: Array) -> Array:
        """As `Engine` says."""
        return self._vision.create_infer_request().infer([pixel_values])[0]

    def embeddings(self, ids: Array) -> Array:
        """As `Engine` says."""
        return self._embeddings.create_infer_request().infer([ids])[0]

    def start(self) -> _State:
        """As `Engine` says."""
        return _State(self._decoder)


class _State:
    """The cache of a request, see `EngineState`."""

    def __init__(self, decoder: ov.CompiledModel) -> None:
        self._request = decoder.create_infer_request()

    def step(self, embeddings: Array, mask: Array, positions: Array, rows: Array, keep: int) -> Array:
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions, "beam_idx": rows}
        inputs["keep"] = np.array([-(keep or _ALL)], dtype=np.int64)
        return self._request.infer(inputs)["logits"]

    def layers(self) -> list[Array]:
        return [state.state.data.copy() for state in self._states()]

    def fill(self, layers: list[Array]) -> None:
        for state, array in zip(self._states(), layers, strict=True):
            state.state = ov.Tensor(np.ascontiguousarray(array))

    def _states(self) -> list[ov.VariableState]:
        """In the order in which they were written: keys of all layers, then values."""
        return sorted(self._request.query_state(), key=lambda state: int(state.name.removeprefix(CACHE)))


def _with_keep(model: ov.Model) -> ov.Model:
    """The decoder with one input more, the first token whose logits are wanted: -1 spares a prompt's all but one.

    Not in the file, since OpenVINO GenAI feeds no such input.
    """
    keep = ops.parameter([1], ov.Type.i64)
    keep.output(0).get_tensor().set_names({"keep"})
    head = model.output("logits").get_node().input_value(0).get_node()
    one, last, middle = (ops.constant([value], dtype=np.int64) for value in (1, _ALL, 1))
    states = ops.slice(head.input_value(0), keep, last, one, middle)
    head.input(0).replace_source_output(states.output(0))
    model.add_parameters([keep])
    model.validate_nodes_and_infer_types()
    return model
