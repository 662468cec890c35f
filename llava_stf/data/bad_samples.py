"""Which samples of a data set cannot be trained on: counted over all data loading processes, up to a limit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llava_stf.data.records import REASONS, SampleError
from llava_stf.errors import DataError

logger = logging.getLogger(__name__)

# The limit is a share of the samples seen, and of no fewer than these (or the whole set, if it is smaller): a share of
# the first few samples says nothing.
WINDOW = 10_000
_UNSEEN, _GOOD, _FIRST_REASON = 0, 1, 2


@contextmanager
def heard_from_workers() -> Iterator[None]:
    """Let a `DataError` of a data loading process say its sentence alone: it comes as the last line of a traceback."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).splitlines()[-1].removeprefix("llava_stf.errors.DataError: ")) from error


class BadSamples:
    """A verdict, one byte, on each of `count` samples, in memory that forked data loading processes share.

    Args:
        count: samples in the set, or of an endless stream that the run reads; numbers behind that start again at 0.
        limit: largest share of bad ones. In a set of 10 and with 1 % the first bad sample is one too many; in a large
            one with a mistyped image folder the 101st is.
        option: name of the user's option for `limit`.
    """

    def __init__(self, count: int, limit: float, option: str = "max_bad_samples") -> None:
        self.verdicts = torch.zeros(count, dtype=torch.uint8).share_memory_()
        self.limit = limit
        self.option = option

    def add_good(self, number: int) -> None:
        """Count a good sample."""
        self.verdicts[number % len(self.verdicts)] = _GOOD

    def add_bad(self, number: int, error: SampleError) -> None:
        """Count a bad sample, each once; the 1st, 2nd, 4th, 8th ... is a warning in the log.

        Raises:
            DataError: they are too many; it gives the reason of this one and the counts of all.
        """
        number %= len(self.verdicts)
        known = self.verdicts[number] >= _FIRST_REASON
        self.verdicts[number] = _FIRST_REASON + REASONS.index(error.reason)
        bad = int((self.verdicts >= _FIRST_REASON).sum())
        base = max(int((self.verdicts != _UNSEEN).sum()), min(len(self.verdicts), WINDOW))
        if bad > self.limit * base:
            raise DataError(f"{error}; {self.summary()}, more than {self.option} {self.limit:g} allows")
        if not known and bad.bit_count() == 1:
            logger.warning("%s; it is passed over; %s", error, self.summary())

    def summary(self) -> str:
        """For instance "3 of 120 samples seen are bad (2 missing image, 1 turn order)"; empty where none is."""
        counts = torch.bincount(self.verdicts, minlength=_FIRST_REASON + len(REASONS)).tolist()
        seen, reasons = sum(counts[_GOOD:]), counts[_FIRST_REASON:]
        if not any(reasons):
            return ""
        kinds = ", ".join(f"{count} {reason}" for reason, count in zip(REASONS, reasons, strict=True) if count)
        return f"{sum(reasons)} of {seen} samples seen are bad ({kinds})"
