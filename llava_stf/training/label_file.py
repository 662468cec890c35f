"""The output of labelling: rows that grow by whole batches, so that a run that was killed goes on where they end."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_stf.data.label_questions import Questions, question_key
from llava_stf.errors import DataError
from llava_stf.io.fsync import fsync_entry
from llava_stf.io.json import parse_json

_ROW_START = b'{"id": '


class LabelFile:
    """A JSON lines file of answered questions, opened by `open_labels`.

    Attributes:
        path: where it is.
        numbers: of the questions that the file is for.
        open: those of them that have no row yet.
        answered: how many have one.
    """

    def __init__(self, path: Path, descriptor: int, numbers: Sequence[int], teacher: Mapping[str, Any]) -> None:
        self.path = path
        self.numbers = numbers
        self.open = list(numbers)
        self.answered = 0
        self._descriptor = descriptor
        self._teacher = dict(teacher)
        self._before: dict[str, Any] = {}  # the teacher of rows that are there

    def add_to_teacher(self, facts: Mapping[str, Any]) -> None:
        """Let further rows say, too, what answers depend on and is known only when the model is loaded.

        Raises:
            DataError: the rows that are there say otherwise; rows of a version that did not say it are taken.
        """
        for name, value in facts.items():
            if self._before.get(name) is not None:
                self._check(name, self._before[name], value)
        self._teacher |= facts

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows and wait until they are on the disk.

        Raises:
            DataError: they cannot be written.
        """
        lines = [json.dumps({**row, "teacher": self._teacher}, ensure_ascii=False) + "\n" for row in rows]
        self._write("".join(lines).encode("utf-8", "surrogatepass"))  # a file name may hold bytes that are no UTF-8
        self.answered += len(rows)

    def read_back(self, questions: Questions) -> None:
        """Find out which questions an earlier run answered, and cut off a last row that it did not finish.

        Raises:
            DataError: anything but answers of the same teacher to these questions; the file stays as it is.
        """
        rows: Counter[tuple[str, bytes]] = Counter()
        end, newline_missing = 0, False
        with self.path.open("rb") as file:
            for line in file:
                try:
                    row = parse_json(line.decode("utf-8", "surrogatepass"))  # as it is written
                except ValueError as error:
                    unfinished = line.startswith(_ROW_START) or _ROW_START.startswith(line)
                    if line.endswith(b"\n") or not unfinished:
                        raise self._foreign(f"at byte {end}") from error
                    break
                rows[self._key(row, f"at byte {end}")] += 1
                end += len(line)
                newline_missing = not line.endswith(b"\n")
        self.answered = rows.total()
        if rows:
            self.open = [number for number in self.open if not _take(rows, questions, number)]
        if foreign := +rows:
            raise self._foreign(f"about {next(iter(foreign))[0]}")
        os.ftruncate(self._descriptor, end)
        if newline_missing:
            self._write(b"\n")

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise DataError(
                f"cannot write to {self.path} ({error.strerror}): make room, and the same command goes on from here"
            ) from error

    def _key(self, row: Any, place: str) -> tuple[str, bytes]:
        try:
            key, teacher = question_key(row, 0), dict(row["teacher"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._foreign(place) from error
        for name, value in self._teacher.items():
            self._check(name, teacher.get(name), value)
        self._before = teacher
        return key

    def _check(self, name: str, before: Any, now: Any) -> None:
        if before != now:
            raise DataError(f"{self.path} holds answers with {name} {before}, this run {now}: name another file")

    def _foreign(self, place: str) -> DataError:
        return DataError(
            f"{self.path} holds something else than answers to these questions, {place}: name another file"
        )


@contextmanager
def open_labels(
    path: Path, questions: Questions, numbers: Sequence[int], teacher: Mapping[str, Any]
) -> Iterator[LabelFile]:
    """The output of a run: a new file, or that of an earlier run of the same questions and the same teacher.

    It is locked against other runs, and removed at the end if nothing was written.

    Args:
        path: the JSON lines file.
        questions: what is asked.
        numbers: of the questions that this file is for.
        teacher: what the answers depend on; every row keeps it.

    Raises:
        DataError: the file cannot be written, another run has it open, or it holds anything else.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"the answers need a file, and {path} is none")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise DataError(f"cannot write the answers to {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path)
        try:
            fsync_entry(path.absolute().parent)
            labels = LabelFile(path, descriptor, numbers, teacher)
            labels.read_back(questions)
            yield labels
        finally:
            if not os.fstat(descriptor).st_size:
                path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DataError(
            f"another run has {path} open ({error.strerror}): wait for its end or name another file"
        ) from error
    if not os.fstat(descriptor).st_nlink:  # the run that had it ended without a row, and removed it
        raise DataError(f"another run has removed {path}: start again")


def _take(rows: Counter[tuple[str, bytes]], questions: Questions, number: int) -> bool:
    """Whether there is a row for a question, which is then used up."""
    try:
        key = question_key(questions[number], number)
    except DataError:  # it cannot be asked, and whoever asks it will say so
        return False
    if not rows[key]:
        return False
    rows[key] -= 1
    return True
