"""Convert a LLaVA or LLaVA-STF checkpoint from any format to Hugging Face's layout or to the authors'."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llava_stf.conversion.huggingface import read_hugging_face, write_hugging_face
from llava_stf.conversion.locate import locate
from llava_stf.conversion.original import read_original
from llava_stf.conversion.sources import Format, Source, detect_format
from llava_stf.conversion.state import CheckpointState, check_tensors
from llava_stf.conversion.to_original import write_original
from llava_stf.errors import CheckpointError, LlavaStfError
from llava_stf.io.publish import publish, refuse_existing
from llava_stf.models.model_card import write_card

logger = logging.getLogger(__name__)


def convert_checkpoint(
    src: str | Path,
    dst: str | Path,
    *,
    to: Literal["hf", "original"] = "hf",
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    fusion_layers: list[int] | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> Path:
    """Convert the checkpoint `src` into the new folder `dst`.

    Reads the authors' format (full checkpoints as safetensors or pickles, sharded or not, and stage-1 projector files),
    haotian-liu's LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision, and Hugging Face folders. Tensors keep their dtype. The
    work goes shard by shard, and `dst`
    appears complete or not at all.

    Args:
        src: folder, weight file or hub id.
        dst: folder to write; must not exist.
        to: `"hf"` writes a `llava_stf` model (a plain LLaVA stays `llava`), `"original"` the authors' format.
        base: for a projector file: the model it was trained on, a plain LLaVA or a Vicuna; folder or hub id.
        vision_tower: tower of an original checkpoint that does not say it (folder or hub id); with `to="original"` from
            a Hugging Face folder, the name to write down.
        fusion_layers: the hidden states MBTF joins, in channel order, where their number does not tell.
        subfolder: of `src`, on the hub.
        revision: of `src`, on the hub.
        progress: show a progress bar on stderr.

    Returns:
        `dst`.

    Raises:
        ModelNotFoundError: `src`, `base` or the tower cannot be found.
        CheckpointError: it is damaged, incomplete or no LLaVA-1.5.
        FusionError: the fused windows do not fit the tower's grid.
        LlavaStfError: `dst` exists or cannot be written.
    """
    if to not in ("hf", "original"):
        raise LlavaStfError(f"to must be 'hf' or 'original', found '{to}'.")
    dst = Path(dst).expanduser()
    refuse_existing(dst)
    source = detect_format(locate(src, subfolder=subfolder, revision=revision))
    state = _take_apart(source, base, None if to == "original" and source.has_tower else vision_tower, fusion_layers)
    check_tensors(state.source, state.config, state.tensors, rows=state.stored_rows, source_name=state.source_name)
    total = sum(stored.nbytes for stored in state.tensors.values())
    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    with (
        Progress(*columns, console=console, transient=True, disable=hidden) as bar,
        publish(dst) as folder,
    ):
        task = bar.add_task("", total=total)

        def on_written(nbytes: int) -> None:
            bar.advance(task, nbytes)

        if to == "hf":
            write_hugging_face(state, folder, on_written=on_written)
        else:
            name = vision_tower if source.has_tower else None
            write_original(state, folder, vision_tower=name, on_written=on_written)
        write_card(folder, base=str(src if base is None else base))
    for note in state.notes:
        logger.warning(note)
    return dst


def _take_apart(
    source: Source, base: str | Path | None, vision_tower: str | Path | None, fusion_layers: list[int] | None
) -> CheckpointState:
    """Read `source`, or, if it is a projector file, its `base` with that projector."""
    adapter = None
    if source.format is Format.ADAPTER:
        if base is None:
            raise CheckpointError(
                f"{source.files[0]} holds a projector only; give the model it was trained on as base (--base)."
            )
        adapter, source = source, detect_format(locate(base))
        if source.format is Format.ADAPTER:
            raise CheckpointError(f"The base {source.folder} is itself a projector; expected a whole model.")
    elif base is not None:
        raise CheckpointError(f"{source.folder} is a whole model and takes no base; base is for a projector file.")
    if source.format in (Format.ORIGINAL, Format.LLAMA):
        return read_original(source, vision_tower=vision_tower, fusion_layers=fusion_layers, adapter=adapter)
    if vision_tower is not None:
        raise CheckpointError(f"{source.folder} has its vision tower inside and takes no other (vision_tower).")
    if fusion_layers is not None and adapter is None:
        raise CheckpointError(f"{source.folder} says itself what it fuses and takes no fusion_layers.")
    return read_hugging_face(source, fusion_layers=fusion_layers, adapter=adapter)
