"""Training samples: token ids, labels and pixels, padded to batches; a bad sample is replaced by another.

Bad samples never change the number of batches, so processes stay in step and a resumed run finds its place. For records
by number the replacement depends on the data alone. In a stream it is the good sample before, among those that the same
process has read, so there it also depends on how many processes there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from llava_stf.data.bad_samples import BadSamples
from llava_stf.data.preparation import Preparation, Sample
from llava_stf.data.records import SampleError
from llava_stf.errors import DataError
from llava_stf.models.llava_stf.conversation import IGNORE_INDEX

if TYPE_CHECKING:
    import datasets

    from llava_stf.data.sources import Records
    from llava_stf.training.config import FinetuneConfig


class TrainingData(NamedTuple):
    """What a Trainer reads, how it makes batches of it, and the verdicts on what it read."""

    dataset: Dataset[Any]
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    bad_samples: BadSamples


def training_data(
    rows: Any,
    prepare: Preparation,
    config: FinetuneConfig,
    *,
    pad_token_id: int,
    samples_per_step: int,
) -> TrainingData:
    """The data of a run, whose `rows` are `Records`, or a `datasets.IterableDataset` if the config says streaming.

    `samples_per_step` are those of all processes together.
    """
    if not config.streaming:
        dataset = LlavaDataset(rows, prepare, max_bad_samples=config.max_bad_samples)
        return TrainingData(dataset, partial(collate, pad_token_id=pad_token_id), dataset.bad_samples)
    assert config.max_steps is not None
    bad_samples = BadSamples(config.max_steps * samples_per_step, config.max_bad_samples)
    return TrainingData(
        StreamedRows(rows), StreamCollator(prepare, bad_samples, pad_token_id=pad_token_id), bad_samples
    )


class LlavaDataset(Dataset[Sample]):
    """The samples of records that can be had by number. In place of a bad one comes the next good one.

    Args:
        records: where the records come from.
        prepare: makes samples of them.
        max_bad_samples: largest share of bad ones, see `BadSamples`; one more raises `DataError` on access.
    """

    def __init__(self, records: Records, prepare: Preparation, *, max_bad_samples: float = 0.01) -> None:
        self.records = records
        self.prepare = prepare
        self.bad_samples = BadSamples(len(records), max_bad_samples)

    @property
    def lengths(self) -> np.ndarray:
        """Signed lengths, int32 [n]: words, negative without an image."""
        return self.records.lengths

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        while True:
            try:
                sample = self.prepare(self.prepare.read(self.records, index), index)
            except SampleError as error:
                self.bad_samples.add_bad(index, error)
                index = (index + 1) % len(self.records)
            else:
                self.bad_samples.add_good(index)
                return sample


class StreamedRows(IterableDataset[tuple[int, Mapping[str, Any]]]):
    """The rows of a `datasets.IterableDataset`, numbered, over and over, each time in another order.

    Each data loading process reads shards of its own, so more of them than shards are of no use. Rows are prepared by
    `StreamCollator`, behind the point where training processes share them out: each prepares its own only.
    """

    def __init__(self, rows: datasets.IterableDataset) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        worker = get_worker_info()
        start, step = (worker.id, min(worker.num_workers, self.rows.num_shards)) if worker else (0, 1)
        number = start
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            before = number
            for row in self.rows:
                yield number, row
                number += step
            if number == before:  # no shard for this process
                return


class StreamCollator:
    """Batches of streamed rows. In place of a bad one comes the good one before it, or in a first batch behind it.

    Args:
        prepare: makes samples of rows.
        bad_samples: takes the verdicts on them.
        pad_token_id: see `collate`.
    """

    def __init__(self, prepare: Preparation, bad_samples: BadSamples, *, pad_token_id: int) -> None:
        self.prepare = prepare
        self.bad_samples = bad_samples
        self.pad_token_id = pad_token_id
        self._last_good: Sample | None = None

    def __call__(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
        """A batch of the samples of these rows; in place of a bad one stands a good one."""
        samples = [self._sample_or_none(number, row) for number, row in rows]
        spare = self._last_good or next((sample for sample in samples if sample is not None), None)
        if spare is None:
            raise DataError(f"all {len(rows)} samples that {self.prepare.name} begins with are bad: see the log")
        batch = []
        for sample in samples:
            spare = sample or spare
            batch.append(spare)
        self._last_good = spare
        return collate(batch, pad_token_id=self.pad_token_id)

    def _sample_or_none(self, number: int, row: Mapping[str, Any]) -> Sample | None:
        try:
            sample = self.prepare(row, number)
        except SampleError as error:
            self.bad_samples.add_bad(number, error)
            return None
        self.bad_samples.add_good(number)
        return sample


def collate(samples: Sequence[Sample], *, pad_token_id: int) -> dict[str, Any]:
    """One batch, padded on the right: `input_ids`, `labels`, `attention_mask` [B, L] (int64).

    With images also `pixel_values` [n, 3, height, width] in the order of their markers, n of images or tiles, and the
    `choices` of all samples; text alone has none. `sample_ids` names the samples, for messages: the model does not take
    it.
    """

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids = [sample["input_ids"] for sample in samples]
    batch: dict[str, Any] = {
        "sample_ids": [sample["sample_id"] for sample in samples],
        "input_ids": pad(ids, pad_token_id),
        "labels": pad([sample["labels"] for sample in samples], IGNORE_INDEX),
        "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
    }
    pixels = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
    if pixels:
        batch["pixel_values"] = torch.cat(pixels)
    for sample in samples:
        for name, values in sample["choices"].items():
            batch[name] = [*batch.get(name, []), *values]
    return batch
