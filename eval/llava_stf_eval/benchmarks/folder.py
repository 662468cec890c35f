"""The folder of a run: what lies where, and which run it belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_stf.errors import LlavaStfError
from llava_stf.io.publish import write_json


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder `root` of one run; `benchmark` is a name such as "pope" or "vqav2:test"."""

    root: Path

    @property
    def options(self) -> Path:
        """What the run was started with; a folder with this file holds a run."""
        return self.root / "run.json"

    @property
    def results(self) -> Path:
        """What all benchmarks gave."""
        return self.root / "results.json"

    @property
    def submissions(self) -> Path:
        """Files for the servers that score."""
        return self.root / "submissions"

    @property
    def images(self) -> Path:
        """Images of samples."""
        return self.root / "images"

    def samples(self, benchmark: str) -> Path:
        """A line for each question of the benchmark."""
        return self.root / "samples" / f"{benchmark}.jsonl"

    def written(self, benchmark: str) -> Path:
        """What lmms-eval itself writes while it scores."""
        return self.root / "parts" / f"{benchmark}.files"

    def journal(self, benchmark: str) -> Path:
        """Answers of the batches that are done."""
        return self.root / "parts" / f"{benchmark}.answers.jsonl"

    def record(self, benchmark: str) -> Path:
        """What `results.json` says about the benchmark, once it is done."""
        return self.root / "parts" / f"{benchmark}.json"

    def log(self, benchmark: str) -> Path:
        """What the benchmark's process printed."""
        return self.root / "parts" / f"{benchmark}.log"

    def records(self) -> dict[str, dict[str, Any]]:
        """Records of all benchmarks that are done, scored or failed."""
        paths = sorted((self.root / "parts").glob("*.json"))
        return {path.name.removesuffix(".json"): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def open_run(root: Path, options: dict[str, Any], *, resume: bool) -> RunFolder:
    """The folder for a run with these options, made if it is not there.

    Raises:
        LlavaStfError: it holds a run and `resume` is false, a run with other options, or something else.
    """
    folder = RunFolder(root.resolve())
    if folder.options.is_file():
        if not resume:
            raise LlavaStfError(f"{root} holds a run already; continue it with --resume, or name another --output.")
        before = json.loads(folder.options.read_text(encoding="utf-8"))
        for name in options:
            if before.get(name) != options[name]:
                raise LlavaStfError(
                    f"{root} holds a run with {name} {before.get(name)}, and this one has {options[name]}; name "
                    "another --output."
                )
        return folder
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise LlavaStfError(f"{root} is there and holds no run; name an empty or new folder as --output.")
    for path in (folder.root / "parts", folder.root / "samples", folder.images):
        path.mkdir(parents=True, exist_ok=True)
    write_json(folder.options, options)
    return folder


@contextmanager
def sole_user(folder: RunFolder) -> Iterator[None]:
    """Keeps another process out of the folder.

    Raises:
        LlavaStfError: one is in it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.root / "parts" / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LlavaStfError(f"Another process is running benchmarks into {folder.root}; wait for it.") from error
    try:
        yield
    finally:
        lock.release()
