"""Answers kept as soon as their batch is done, so that a run that was killed goes on from its last finished batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """What the model said to one request.

    `prompt` is the text after the chat template, with one `<image>` per image. `input_tokens` counts all the LLM saw
    of the prompt, vision tokens included; `output_tokens` what it said, its end token included.
    """

    text: str
    prompt: str
    input_tokens: int
    output_tokens: int


class Journal:
    """Answers by request key, in memory and, with a path, in a file of one JSON line per finished batch.

    A line that a killed process left unfinished is dropped when the file is opened again. `seconds` is the time that
    the answers took, over all runs that wrote into the file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.seconds = 0.0
        self._answers: dict[str, Answer] = {}
        self._path = path
        if path is not None and path.exists():
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def add(self, answers: Mapping[str, Answer], seconds: float) -> None:
        """Keeps the answers of one batch; they are on the disk when this returns."""
        if self._path is not None:
            record = {"seconds": seconds, "answers": {key: asdict(answer) for key, answer in answers.items()}}
            with self._path.open("ab") as file:
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        self._answers.update(answers)
        self.seconds += seconds

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].splitlines():
            record = json.loads(line)
            self._answers.update({key: Answer(**fields) for key, fields in record["answers"].items()})
            self.seconds += record["seconds"]
        if whole < len(data):
            os.truncate(path, whole)
