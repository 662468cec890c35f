"""Reads a whole data set once, in parallel, and counts what training would stumble over."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from llava_stf.data.preparation import Preparation
from llava_stf.data.records import REASONS, Reason, SampleError
from llava_stf.data.sources import Records

BATCH = 64
OFFENDERS = 5


class Verdict(NamedTuple):
    """On one sample: what is wrong with it, if anything; else its length in tokens."""

    reason: Reason | None
    sample_id: str
    sentence: str
    length: int


@dataclass(frozen=True)
class Report:
    """What a data set is like.

    Attributes:
        samples: how many there are.
        reasons: how many of them are bad, by kind; only kinds that occur.
        offenders: the ids and sentences of the first `OFFENDERS` bad ones of each kind, in the order of the data.
        lengths: shortest, median and longest good sample in tokens, image tokens included; None without a good one.
        cut: good samples longer than the longest sequence, whose end training does not see.
        seconds: what the reading took.
    """

    samples: int
    reasons: dict[Reason, int]
    offenders: dict[Reason, list[tuple[str, str]]]
    lengths: tuple[int, float, int] | None
    cut: int
    seconds: float

    @property
    def bad(self) -> int:
        """Number of bad samples."""
        return sum(self.reasons.values())


class _Verdicts(Dataset[Verdict]):
    def __init__(self, records: Records, prepare: Preparation) -> None:
        self.records, self.prepare = records, prepare

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Verdict:
        try:
            record = self.prepare.read(self.records, number)
            ids, _, _ = self.prepare.read_sequence(record, number)
        except SampleError as error:
            return Verdict(error.reason, error.sample_id, str(error), 0)
        return Verdict(None, "", "", len(ids))


def check_data(
    records: Records, prepare: Preparation, *, workers: int, progress: Callable[[int], None] | None = None
) -> Report:
    """The report on all records, which `workers` processes read. `progress` is told how many are done.

    The memory it takes is that of the index, four bytes per record for its length, and a few batches of verdicts.
    """
    started = time.perf_counter()
    reasons: Counter[Reason] = Counter()
    offenders: defaultdict[Reason, list[tuple[str, str]]] = defaultdict(list)
    lengths = np.zeros(len(records), dtype=np.int32)
    done = 0
    loader = DataLoader(
        _Verdicts(records, prepare), BATCH, num_workers=min(workers, len(records) // BATCH), collate_fn=list
    )
    for verdicts in loader:
        for number, verdict in enumerate(verdicts, done):
            lengths[number] = verdict.length
            if verdict.reason is not None:
                reasons[verdict.reason] += 1
                if reasons[verdict.reason] <= OFFENDERS:
                    offenders[verdict.reason].append((verdict.sample_id, verdict.sentence))
        done += len(verdicts)
        if progress is not None:
            progress(done)
    good = lengths[lengths > 0]
    return Report(
        samples=len(records),
        reasons={reason: reasons[reason] for reason in REASONS if reasons[reason]},
        offenders=dict(offenders),
        lengths=(int(good.min()), float(np.median(good)), int(good.max())) if len(good) else None,
        cut=int((good > prepare.max_length).sum()),
        seconds=time.perf_counter() - started,
    )
