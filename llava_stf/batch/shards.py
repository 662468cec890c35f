"""The output of a batch: shards of rows that appear whole or not at all, and a manifest of what they answer.

    OUTPUT/manifest.json       what is answered, by which model, with which options
    OUTPUT/summary.json        `complete`: whether every row has its result, and then how many are errors
    OUTPUT/part-00000.jsonl    the results of the first `shard_size` rows, and so on

A run takes a shard by locking the file that it will write it to. The lock goes with the process, however it ends, so
runs on one machine or on several share a folder without talking to each other. Object stores have no locks: runs that
share one there answer the same rows, and the later of two equal shards stands.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from llava_stf.batch.places import Place, S3Path, claim_file, list_names
from llava_stf.errors import DataError
from llava_stf.io.json import parse_json

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5  # between two looks at shards that other runs have


class Shards:
    """The shards of `rows` results in `folder`, `shard_size` in each but the last."""

    def __init__(self, folder: Place, rows: int, shard_size: int) -> None:
        self.folder = folder
        self._rows = rows
        self._size = shard_size
        self._digits = max(5, len(str(len(self) - 1)))

    def __len__(self) -> int:
        return -(-self._rows // self._size)

    def span(self, shard: int) -> range:
        """Numbers of the rows of one shard."""
        return range(shard * self._size, min((shard + 1) * self._size, self._rows))

    def open(self) -> list[int]:
        """The shards that are not there yet."""
        there = set(list_names(self.folder))
        return [shard for shard in range(len(self)) if self._name(shard) not in there]

    def wait_for_open(self) -> list[int]:
        """The open shards, as soon as no other run has one of them; none, once all are there."""
        is_waiting = False
        while shards := self.open():
            for shard in shards:
                with self.claim(shard) as claim:
                    if claim is not None:
                        return shards
            if not is_waiting:
                logger.warning("Waiting for the last shards in %s: other runs are at work on them.", self.folder)
                is_waiting = True
            time.sleep(_WAIT_SECONDS)
        return []

    @contextmanager
    def claim(self, shard: int) -> Iterator[Claim | None]:
        """Takes a shard for this process; `None` if another one has it or has written it.

        Raises:
            DataError: the folder cannot be written to or its file system has no locks.
        """
        target = self.folder / self._name(shard)
        with ExitStack() as stack:
            with _writing(target):
                write = stack.enter_context(claim_file(target))
            # Who had it may have written it between our look and our lock.
            yield None if write is None or target.exists() else Claim(target, write)

    def check(self) -> int:
        """Makes sure that every row has exactly one result, in order; returns how many of them are errors.

        Raises:
            DataError: a shard does not hold what it must; it names the first.
        """
        errors = 0
        for shard in range(len(self)):
            path = self.folder / self._name(shard)
            try:
                results = [parse_json(line) for line in path.read_bytes().splitlines()]
                numbers = [result["index"] for result in results]
                errors += sum(result["error"] is not None for result in results)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} is damaged: delete it, and the same command writes it again.") from error
            if numbers != list(self.span(shard)):
                raise DataError(
                    f"{path} must hold rows {self.span(shard)[0]} to {self.span(shard)[-1]} once each, in order, found "
                    f"{len(numbers)} others: delete it, and the same command writes it again."
                )
        return errors

    def sum_up(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, or replaces it.

        Raises:
            DataError: that is not possible.
        """
        target = self.folder / "summary.json"
        with _writing(target), claim_file(target, wait=True) as write:
            assert write is not None  # it was waited for
            write(json.dumps(summary, indent=2).encode() + b"\n")

    def _name(self, shard: int) -> str:
        return f"part-{shard:0{self._digits}d}.jsonl"


@dataclass(frozen=True)
class Claim:
    """A shard that this process has taken."""

    path: Place
    _write: Callable[[bytes], None]

    def write(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Writes the shard; it is on the disk when this returns.

        Raises:
            DataError: that is not possible.
        """
        with _writing(self.path):
            self._write(b"".join(json.dumps(result).encode() + b"\n" for result in results))


def open_output(folder: Place, manifest: Mapping[str, Any]) -> None:
    """Makes `folder` the output of a run that is described by `manifest`, or finds that it is.

    Raises:
        DataError: the folder holds something else or the output of another command, or cannot be written to.
    """
    path = folder / "manifest.json"
    try:
        if not isinstance(folder, S3Path):
            folder.mkdir(parents=True, exist_ok=True)
        others = list_names(folder)
        if others and not path.exists():
            raise DataError(f"{folder} holds something else than a batch, {others[0]} for one: name a new folder.")
        if not others:
            with claim_file(path, wait=True) as write:
                if write is not None and not path.exists():  # another run can have been faster
                    write(json.dumps(manifest, indent=2).encode() + b"\n")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot write to {folder}: {error.strerror}.") from error
    try:
        found = parse_json(content)
    except ValueError as error:
        raise DataError(f"{path} is no JSON: name a new folder.") from error
    if found != json.loads(json.dumps(manifest)):
        raise DataError(f"{folder} is the output of another command ({_difference(found, manifest)}): name a new one.")


def _difference(found: Any, manifest: Mapping[str, Any]) -> str:
    for name, value in manifest.items():
        there = found.get(name) if isinstance(found, dict) else None
        if there != value:
            return f"{name} was {there}, now it is {value}"
    return f"it also has {', '.join(sorted(set(found).difference(manifest)))}"


@contextmanager
def _writing(target: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write {target} ({error.strerror}): put that right, and the same command goes on from here."
        ) from error
