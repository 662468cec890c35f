"""The optimizer's state in a checkpoint: by the parameters' names, so that any number of processes can go on from it.

A folder as `torch.distributed.checkpoint` writes it, to which every process adds what it holds of sharded weights. Each
entry is `<parameter>/<kind of state>`. Parameters that no step has reached yet have none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException

from llava_stf.errors import LlavaStfError, one_line

FOLDER = "optimizer"


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, checkpoint: Path, *, sharded: bool) -> None:
    """Write the state; every process calls it if the weights are sharded, and one otherwise.

    Raises:
        RuntimeError: it cannot be written.
    """
    state = {
        f"{name}/{kind}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
    try:
        with _quiet():
            dcp.save(state, checkpoint_id=checkpoint / FOLDER, no_dist=not sharded)
    except CheckpointException as error:  # no Exception, so that nobody forgets it
        raise RuntimeError(_reason(error)) from error


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, checkpoint: Path, *, sharded: bool) -> None:
    """Load the state in place; every process calls it.

    Raises:
        LlavaStfError: the checkpoint has none, or that of another model.
    """
    parameters = dict(model.named_parameters())
    state: dict[str, Tensor] = {}
    try:
        saved: dict[str, Any] = FileSystemReader(checkpoint / FOLDER).read_metadata().state_dict_metadata
        for entry, found in saved.items():
            name, _, _ = entry.rpartition("/")
            like = parameters[name]
            scalar = not found.size
            state[entry] = torch.zeros((), dtype=found.properties.dtype) if scalar else torch.zeros_like(like)
        with _quiet():
            dcp.load(state, checkpoint_id=checkpoint / FOLDER, no_dist=not sharded)
    except (OSError, EOFError, UnpicklingError, KeyError, AttributeError, CheckpointException) as error:
        raise LlavaStfError(
            f"{checkpoint} has no optimizer state that fits this model ({_reason(error)}): give another output or "
            "--overwrite"
        ) from error
    for entry, value in state.items():
        name, _, kind = entry.rpartition("/")
        optimizer.state[parameters[name]][kind] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that one process writes or reads alone, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _reason(error: BaseException) -> str:
    """One line; of several processes' errors the first one's."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return one_line(error)
