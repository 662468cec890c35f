"""Files of a training run: `checkpoint-<step>` folders and, in the end, the trained model beside them.

An output folder holds a trained model if and only if it has a config.json: that file is moved there last. A checkpoint
is complete if and only if it has a readable trainer_state.json, which the Trainer writes last.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from llava_stf.errors import LlavaStfError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

PARTIAL = ".partial"
LAST_FILE = "config.json"


def newest_checkpoint(output: Path) -> Path | None:
    """The complete checkpoint of the highest step in `output`, or None."""
    return max(_complete_checkpoints(output), key=_step, default=None)


def prepare_output(output: Path, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None to start afresh; creates the folder, clears what was left half-written.

    Raises `LlavaStfError` if the folder holds another run and this one does not resume, or cannot be written.
    """
    checkpoint = newest_checkpoint(output)
    if not resume and (checkpoint is not None or (output / LAST_FILE).exists()):
        raise LlavaStfError(
            f"the output folder {output} already holds a run: give --resume to go on, or another folder"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlavaStfError(f"cannot create the output folder {output}: {error.strerror}") from error
    complete = set(_complete_checkpoints(output))
    for folder in [*output.glob("checkpoint-*"), output / PARTIAL]:
        if folder.is_dir() and folder not in complete:
            shutil.rmtree(folder)
    return checkpoint


def save_model(model: PreTrainedModel, processor: ProcessorMixin, output: Path, dtype: torch.dtype) -> None:
    """Write the trained model, cast to `dtype`, and its processor, so that no half-written model is ever found."""
    partial = output / PARTIAL
    model.to(dtype).save_pretrained(partial)
    processor.save_pretrained(partial)
    (output / LAST_FILE).unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == LAST_FILE):
        path.replace(output / path.name)
    partial.rmdir()


def _complete_checkpoints(output: Path) -> list[Path]:
    return [path for path in output.glob("checkpoint-*") if _step(path) >= 0]


def _step(checkpoint: Path) -> int:
    """The checkpoint's optimizer step; -1 if it is not complete."""
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1
