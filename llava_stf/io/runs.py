"""Files of a training run: `checkpoint-<step>` folders and, in the end, the trained model beside them.

Everything is written to the folder `.partial` first, brought to the disk and then renamed, so whatever stops a run, a
folder named `checkpoint-<step>` is whole; one that another program left without a readable trainer_state.json, which
the Trainer writes last, does not count. An output folder holds a trained model if and only if it has a config.json:
that file is moved there last.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from llava_stf.errors import LlavaStfError
from llava_stf.io.json import parse_json
from llava_stf.io.publish import commit, refuse_unwritable

if TYPE_CHECKING:
    import torch
    from transformers import ProcessorMixin

    Save = Callable[[Any, Path, torch.dtype, dict[str, Any] | None], None]

PARTIAL = ".partial"
LAST_FILE = "config.json"
_NAME = re.compile(r"checkpoint-\d+")
_OPTIONS = "run_options.json"
_STATE = "state.pt"
_MODEL_FILES = (
    *("model*.safetensors", "model.safetensors.index.json", "generation_config.json", "adapter_*"),
    *("processor_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"),
)


def newest_checkpoint(output: Path) -> Path | None:
    """The complete checkpoint of the highest step in `output`, or None."""
    return max(_complete_checkpoints(output), key=checkpoint_step, default=None)


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer steps taken before the checkpoint; -1 if it is not complete."""
    try:
        return int(parse_json((checkpoint / "trainer_state.json").read_bytes())["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def describe_newest(output: Path) -> str:
    """Half a sentence on what a run can be resumed from."""
    newest = newest_checkpoint(output)
    return "no checkpoint was written yet" if newest is None else f"the last good checkpoint is {newest}"


def prepare_output(output: Path, *, resume: bool, overwrite: bool = False) -> Path | None:
    """The checkpoint to go on from, or None to start afresh; creates the folder, clears what was left half-written.

    With `overwrite` the other run stays until `remove_run`.

    Raises:
        LlavaStfError: the folder holds another run which this one neither resumes nor overwrites, or a model without a
            checkpoint to go on from, or cannot be written.
    """
    checkpoint = newest_checkpoint(output)
    has_model = (output / LAST_FILE).exists()
    if not (resume or overwrite) and (checkpoint is not None or has_model):
        raise LlavaStfError(
            f"the output folder {output} already holds a run: give --resume to go on, --overwrite to replace it, "
            "or another folder"
        )
    if resume and checkpoint is None and has_model:  # a base say; a run from its start would end by writing over it
        raise LlavaStfError(
            f"the output folder {output} holds a model, and no checkpoint to go on from: give --overwrite to replace "
            "it, or another folder"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlavaStfError(f"cannot create the output folder {output}: {error.strerror}") from error
    refuse_unwritable(output)
    for folder in [*_checkpoints(output), output / PARTIAL]:
        if checkpoint_step(folder) < 0:
            shutil.rmtree(folder, ignore_errors=True)  # every process of a run does this, at about the same time
    return None if overwrite else checkpoint


def write_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Keep, in a checkpoint that is being written, the options that decide what comes out of its run."""
    (folder / _OPTIONS).write_text(json.dumps(options, indent=2), encoding="utf-8")


def check_options(checkpoint: Path, options: Mapping[str, Any]) -> None:
    """Compare a run that is to be resumed with the one that the checkpoint is from.

    Args:
        checkpoint: what is gone on from.
        options: of the new run, as for `write_options`.

    Raises:
        LlavaStfError: an option differs, or the checkpoint does not hold any; each that differs is named.
    """
    try:
        before = parse_json((checkpoint / _OPTIONS).read_bytes())
        now = json.loads(json.dumps(options))  # tuples are lists there
        differing = [name for name in now if before.get(name) != now[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise LlavaStfError(
            f"{checkpoint} does not say what its run was like ({_OPTIONS} is missing or broken), so it cannot be "
            "resumed: give another output or --overwrite"
        ) from error
    if differing:
        changes = ", ".join(f"{name} {before.get(name)!r} is now {now[name]!r}" for name in differing)
        raise LlavaStfError(
            f"{checkpoint} belongs to a run with other options ({changes}): resume with the old ones, or give another "
            "output or --overwrite"
        )


def remove_run(output: Path) -> None:
    """Delete the run that `output` holds: its checkpoints and the files of its model; other files stay."""
    (output / LAST_FILE).unlink(missing_ok=True)  # first: without it there is no model
    for checkpoint in _complete_checkpoints(output):
        shutil.rmtree(checkpoint)
    for pattern in _MODEL_FILES:
        for path in output.glob(pattern):
            path.unlink()


def publish_checkpoint(output: Path, name: str, *, keep: int) -> None:
    """Turn `.partial/<name>`, completely written, into a checkpoint of `output`, and delete all but the newest `keep`.

    At every moment either the older checkpoint or the new one is whole and on the disk.
    """
    partial = output / PARTIAL
    commit(partial / name, output / name)
    for outdated in sorted(_complete_checkpoints(output), key=checkpoint_step)[:-keep]:
        outdated.rename(partial / outdated.name)
    shutil.rmtree(partial)


def save_state(output: Path, step: int, state: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Write a checkpoint that holds its state in one file, and keep the newest two; `read_state` gives it back.

    Args:
        output: folder of the run.
        step: its optimizer steps so far.
        state: tensors and plain values.
        options: that decide what comes out of the run.

    Raises:
        LlavaStfError: it cannot be written; the checkpoints stay as they are.
    """
    import torch

    name = f"checkpoint-{step}"
    folder = output / PARTIAL / name
    with reported_writing(f"a checkpoint at step {step}", output):
        folder.mkdir(parents=True)
        torch.save(dict(state), folder / _STATE)
        write_options(folder, options)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        publish_checkpoint(output, name, keep=2)


def read_state(checkpoint: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `save_state` wrote, of a run that goes on with the same options.

    Raises:
        LlavaStfError: as `check_options`.
    """
    import torch

    check_options(checkpoint, options)
    return torch.load(checkpoint / _STATE, weights_only=True)


def save_whole(model: Any, folder: Path, dtype: torch.dtype, state_dict: dict[str, Any] | None = None) -> None:
    """Write a whole model cast to `dtype`; `state_dict` has its weights where they are sharded over processes."""
    if state_dict is None:
        model.to(dtype).save_pretrained(folder)
        return
    model.save_pretrained(folder, state_dict={name: value.to(dtype) for name, value in state_dict.items()})
    model.config.dtype = dtype
    model.config.save_pretrained(folder)


def save_model(
    model: Any,
    processor: ProcessorMixin | None,
    output: Path,
    dtype: torch.dtype,
    *,
    save: Save = save_whole,
    state_dict: dict[str, Any] | None = None,
) -> None:
    """Write the trained model, cast to `dtype`, and a processor, so that no half-written model is ever found.

    `save` writes the model, its adapters alone for instance. `state_dict` has the weights where the model's own are
    sharded over processes.

    Raises:
        LlavaStfError: it cannot be written, with a full disk say; the checkpoints stay as they are.
    """
    partial = output / PARTIAL
    with reported_writing("the trained model", output):
        save(model, partial, dtype, state_dict)
        (partial / "README.md").unlink(missing_ok=True)  # one in `output` may be the user's own
        if processor is not None:
            processor.save_pretrained(partial)
        (output / LAST_FILE).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == LAST_FILE):
            commit(path, output / path.name)
        partial.rmdir()


@contextmanager
def reported_writing(what: str, output: Path) -> Iterator[None]:
    """Turn a failure to write into a `LlavaStfError` that names the last good checkpoint, and free the disk again."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # full disks are RuntimeErrors in torch's writer
        shutil.rmtree(output / PARTIAL, ignore_errors=True)
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise LlavaStfError(
            f"cannot write {what} to {output} ({reason}): make room on the disk and go on with --resume; "
            f"{describe_newest(output)}"
        ) from error


def _checkpoints(output: Path) -> list[Path]:
    """By their names, which a copy of one (`checkpoint-500-best`) does not have: that is the user's own."""
    return [path for path in output.glob("checkpoint-*") if _NAME.fullmatch(path.name)]


def _complete_checkpoints(output: Path) -> list[Path]:
    return [path for path in _checkpoints(output) if checkpoint_step(path) >= 0]
