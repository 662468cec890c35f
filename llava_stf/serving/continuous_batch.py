"""A batch that rows join and leave between tokens: a long answer holds up nobody who comes after it.

transformers' own `generate_batch` does this for texts; it takes neither images nor embeddings (5.17 to 5.24). Here
prompts are read by `Reading`, and what each of them says about its tokens is prepared by `generate`, as for one alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BatchFeature,
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from llava_stf.inference import LlavaStf
from llava_stf.inference.generation import RefuseNan
from llava_stf.inference.prefix import Prefix, PrefixCache
from llava_stf.inference.reading import Reading
from llava_stf.inference.running_cache import RunningCache
from llava_stf.models.fusion.modeling import CACHE
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.rows import Row, fail_all, request_ids

logger = logging.getLogger(__name__)

# Of prompts that are read between two tokens of the others, which wait for it; one prompt at least.
TOKENS_READ_TOGETHER = 1024
# What makes scores of logits without a look at the ids before, so that rows can have theirs made together.
_OF_LOGITS_ALONE = SuppressTokensLogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper, RefuseNan


def takes_rows(llava: LlavaStf) -> bool:
    """Whether rows can join a running batch of this model: where what was read serves other prompts (`reuses`).

    The cache of an export lies in its engine, and rows do not come and go there.
    """
    return llava.reuses() and not hasattr(llava.model, "new_cache")


@dataclass
class _Running:
    """A row of the batch.

    Attributes:
        row: what comes of it goes there.
        places: of the images in its prompt.
        ids: int64 [1, n], prompt and answer; the last one is not read yet.
        scores: makes the scores of the next token of `ids` and its logits.
        kind: rows of one kind can have their scores made together.
        ends: ends it before its length or the model's end.
        generator: where tokens are drawn from; `None` draws as torch does.
    """

    row: Row
    places: list[tuple[Any, int, int]]
    ids: Tensor
    scores: LogitsProcessorList
    kind: object
    ends: StoppingCriteriaList
    generator: torch.Generator | None


class ContinuousBatch:
    """Answers rows token by token, in one thread at a time.

    Args:
        llava: the model, of which `takes_rows`.
        metrics: where it counts.
        max_rows: that run at a time.
        prefixes: what was read is kept there; `None` keeps nothing.
    """

    def __init__(self, llava: LlavaStf, metrics: Metrics, max_rows: int, prefixes: PrefixCache | None) -> None:
        self._llava = llava
        self._metrics = metrics
        self._max_rows = max_rows
        self._prefixes = prefixes
        self._ends = llava.end_ids
        self._running: list[_Running] = []
        self._cache = RunningCache()

    @property
    def running(self) -> int:
        """Rows that are being answered."""
        return len(self._running)

    def choose(self, waiting: Iterable[Row]) -> list[Row]:
        """Those of the rows that wait which `run` may take now, in their order."""
        chosen: list[Row] = []
        tokens = 0
        for row in waiting:
            tokens += row.prompt_tokens
            if len(self._running) + len(chosen) == self._max_rows or (chosen and tokens > TOKENS_READ_TOGETHER):
                break
            chosen.append(row)
        return chosen

    @torch.inference_mode()
    def run(self, new: Sequence[Row]) -> None:
        """Reads the prompts of new rows, which begin, and gives every row its next token."""
        read: list[tuple[_Running, Prefix]] = []
        if new:
            self._metrics.batch_size.observe(len(self._running) + len(new))
            try:
                read = self._read(new)
            except Exception:  # whatever is wrong with these, those that run may do well
                logger.exception("The model failed at %d new requests: %s.", len(new), request_ids(new))
                fail_all(new)
        try:
            for each, prefix in read:
                if not each.row.over:
                    self._cache.join(prefix.layers)
                    self._running.append(each)
            if self._running:
                self._step()
            for index in reversed(range(len(self._running))):
                if self._running[index].row.over:
                    self._leave(index)
        except Exception:
            rows = list(dict.fromkeys([*(each.row for each in self._running), *new]))
            logger.exception("The model failed at a batch of %d: %s.", len(rows), request_ids(rows))
            fail_all(rows)
            self._running, self._cache = [], RunningCache()

    def _read(self, rows: Sequence[Row]) -> list[tuple[_Running, Prefix]]:
        """Reads prompts, and chooses the first token of each answer; what was read beside it."""
        reading = Reading(self._llava, [row.prompt for row in rows], self._prefixes, to_finish=True)
        for row, cached in zip(rows, reading.cached, strict=True):
            row.begin(cached, self._metrics)
        logits = reading.finish()
        read = reading.prefixes(reading.inputs["input_ids"], [0] * len(rows))
        started = [self._start(row, prefix.images) for row, prefix in zip(rows, read, strict=True)]
        self._take(started, logits)
        if self._prefixes is not None:
            for prefix in read:
                self._prefixes.put(prefix)
        return list(zip(started, read, strict=True))

    def _start(self, row: Row, places: list[tuple[Any, int, int]]) -> _Running:
        """A row with what `generate` makes of its request and the model's settings."""
        prepared: dict[str, Any] = {}

        def keep(model: Any, input_ids: Tensor, **options: Any) -> Tensor:
            prepared.update(options)
            return input_ids

        ids = torch.tensor([row.prompt.ids], device=self._llava.model.device)
        self._llava.generate(
            BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
            max_new_tokens=row.limit,
            custom_generate=keep,
            **row.request.generate_options,
        )
        # A row knows its length and the ends of the model by itself.
        known = MaxLengthCriteria, EosTokenCriteria
        ends = [criterion for criterion in prepared["stopping_criteria"] if not isinstance(criterion, known)]
        scores, asked = prepared["logits_processor"], row.request
        alike = all(isinstance(each, _OF_LOGITS_ALONE) for each in scores)
        kind = (asked.samples, asked.temperature, asked.top_p) if alike else row
        generator = None
        if asked.samples and asked.seed is not None:
            generator = torch.Generator(ids.device).manual_seed(asked.seed)
        return _Running(row, places, ids, scores, kind, StoppingCriteriaList(ends), generator)

    def _step(self) -> None:
        """One more token of every row."""
        mask, positions = self._cache.next_column()
        device = self._llava.model.device
        logits = self._llava.model(
            input_ids=torch.cat([each.ids[:, -1:] for each in self._running]),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: self._cache},
        ).logits
        self._take(self._running, logits[:, -1].float())

    def _take(self, running: Sequence[_Running], logits: Tensor) -> None:
        """Chooses the next token of each row, by its own logits of [B, V]."""
        kinds: dict[object, list[int]] = {}
        for index, each in enumerate(running):
            kinds.setdefault(each.kind, []).append(index)
        chosen = torch.empty(len(running), 1, dtype=torch.int64, device=logits.device)
        for rows in kinds.values():
            first = running[rows[0]]
            scores = logits[rows]
            for make in first.scores:
                scores = make(first.ids, scores)
            if first.row.request.samples:
                generators = [running[index].generator for index in rows]
                drawn = [
                    torch.multinomial(own, 1, generator=g)
                    for own, g in zip(scores.softmax(-1), generators, strict=True)
                ]
                chosen[rows] = torch.stack(drawn)
            else:
                chosen[rows] = scores.argmax(-1, keepdim=True)
        for each, token, number in zip(running, chosen.split(1), chosen[:, 0].tolist(), strict=True):
            each.ids = torch.cat([each.ids, token], dim=1)
            each.row.add(number, self._ends, self._metrics)
            if each.ends and each.ends(each.ids, None).all():
                each.row.end(self._metrics)

    def _leave(self, index: int) -> None:
        """Takes a row out, the last one coming in its place, and keeps what was read of it."""
        left, read = self._running[index], self._cache.lengths[index]
        if self._prefixes is not None:
            ids = left.ids[0, :read].cpu().numpy()
            self._prefixes.put(Prefix(ids, left.places, self._cache.states_of(index)))
        self._cache.leave(index)
        self._running[index] = self._running[-1]
        self._running.pop()
