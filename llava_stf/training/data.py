"""Training samples: token ids, labels and pixels, padded to batches; a bad sample is replaced by another.

In its place comes the next good one. So bad samples never change the number of batches, processes stay in step, a
resumed run finds its place, and what replaces a sample depends on the data alone, not on how many processes train.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
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
    share: Share,
) -> TrainingData:
    """The data of a run, whose `rows` are `Records`, or a `datasets.IterableDataset` if the config says streaming.

    Raises:
        DataError: there are fewer records than processes.
    """
    dataset: LlavaDataset | StreamedSamples
    if config.streaming:
        assert config.max_steps is not None
        count = config.max_steps * config.gradient_accumulation * share.batch * share.processes
        dataset = StreamedSamples(rows, prepare, BadSamples(count, config.max_bad_samples), share)
    elif len(rows) < share.processes:
        raise DataError(
            f"the data has {len(rows)} samples, fewer than the {share.processes} processes that train on it"
        )
    else:
        dataset = LlavaDataset(rows, prepare, max_bad_samples=config.max_bad_samples)
    return TrainingData(dataset, partial(collate, pad_token_id=pad_token_id), dataset.bad_samples)


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


class StreamedSamples(IterableDataset["Sample | None"]):
    """The samples of a `datasets.IterableDataset`, over and over, each time in another order.

    In place of a bad row comes the next good one, which is a sample of its own, too. Each data loading process reads
    shards of its own, so more of them than shards are of no use. Training processes take batches in turn: `None` stands
    for a row of another one, and only the own ones are decoded.

    Args:
        rows: the stream.
        prepare: makes samples of rows.
        bad_samples: takes the verdicts on them.
        share: who takes which rows.
    """

    def __init__(
        self, rows: datasets.IterableDataset, prepare: Preparation, bad_samples: BadSamples, share: Share
    ) -> None:
        self.rows, self.prepare, self.bad_samples, self.share = rows, prepare, bad_samples, share

    def __iter__(self) -> Iterator[Sample | None]:
        rows = numbered_rows(self.rows)
        ahead: deque[tuple[int, Mapping[str, Any]]] = deque()  # read already to replace a bad row
        for place in itertools.count():
            if not ahead:
                ahead.extend(itertools.islice(rows, 1))
            if not ahead:
                return
            if self.share.has(place):
                yield next(filter(None, map(self._sample_or_none, _read_on(ahead, rows))))
            else:
                yield None
            ahead.popleft()

    def _sample_or_none(self, numbered: tuple[int, Mapping[str, Any]]) -> Sample | None:
        number, row = numbered
        try:
            sample = self.prepare(row, number)
        except SampleError as error:
            self.bad_samples.add_bad(number, error)
            return None
        self.bad_samples.add_good(number)
        return sample


class Share(NamedTuple):
    """Which rows of a stream a training process takes: every batch of all processes is dealt out, `batch` rows each."""

    batch: int
    process: int = 0
    processes: int = 1

    def has(self, place: int) -> bool:
        """Whether the row at that place of the stream is its own."""
        return place // self.batch % self.processes == self.process


def numbered_rows(rows: datasets.IterableDataset) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows that this data loading process reads, over and over, with numbers that no other one gives."""
    worker = get_worker_info()
    number, step = (worker.id, min(worker.num_workers, rows.num_shards)) if worker else (0, 1)
    for epoch in itertools.count():
        rows.set_epoch(epoch)
        before = number
        for row in rows:
            yield number, row
            number += step
        if number == before:  # no shard for this process
            return


def _read_on(ahead: deque[Any], rows: Iterator[Any]) -> Iterator[Any]:
    """What was read already, and then what comes, which is kept."""
    yield from list(ahead)
    for row in rows:
        ahead.append(row)
        yield row


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


def filler(prepare: Preparation, *, pad_token_id: int) -> dict[str, Any]:
    """A batch of one row that shows an image and has nothing to learn, for `with_filler`."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    row = prepare({"id": "filler", "image": Image.new("RGB", (32, 32)), "conversations": turns}, 0)
    batch = collate([row], pad_token_id=pad_token_id)
    return {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)}


def with_filler(batch: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A batch of text alone with the one row of another below it, which has images; `sample_ids` stay.

    The row changes neither the loss nor a gradient if it has nothing to learn.
    """

    def below(name: str, value: int) -> Tensor:
        rows = [*batch[name], row[name][0].to(batch[name].device)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    joined = {"input_ids": below("input_ids", 0), "labels": below("labels", IGNORE_INDEX)}
    return {**row, **batch, **joined, "attention_mask": below("attention_mask", 0)}
