"""Training samples from a LLaVA data file: token ids, labels and pixels, padded to batches.

A data file is a JSON list, or JSON lines, of `{"id", "image", "conversations"}`; `image` (a path below the image
folder, or a list of them) is absent in text-only samples. The dataset keeps the place of each sample in the file and
reads it when it is asked for, so 665,000 samples take 11 MB of memory, in worker processes, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlavaProcessor

from llava_stf.conversation import IGNORE_INDEX, IMAGE_TOKEN, encode_conversation
from llava_stf.errors import DataError, ImageError
from llava_stf.images import load_image

Template = Literal["v1", "plain"]


class Sample(TypedDict):
    """One training sample: ids and labels (int64 [L]) and its pictures (float32 [n_images, 3, height, width])."""

    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor | None


class LlavaDataset(Dataset[Sample]):
    """The samples of one LLaVA data file, ready for the model.

    Args:
        data: JSON list or JSON lines.
        images: folder that image paths start from; default the data file's own.
        processor: gives the tokenizer, the image preprocessing and the number of tokens an image takes.
        template: `"v1"` for conversations, `"plain"` for captions.
        max_length: longest sequence, image tokens included. Text beyond is cut; image tokens never are.

    Raises `DataError` for a file that holds no samples, and on access for a malformed sample, naming it.
    """

    def __init__(
        self, data: Path, images: Path | None, processor: LlavaProcessor, *, template: Template, max_length: int
    ) -> None:
        self.data = data
        self.spans = sample_spans(data)
        self.images = data.parent if images is None else images
        if not self.images.is_dir():
            raise DataError(f"the image folder {self.images} does not exist")
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self.image_token_id = processor.image_token_id
        self.tokens_per_image = tokens_per_image(processor)
        self.template: Template = template
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Sample:
        start, end = self.spans[index]
        with self.data.open("rb") as file:
            file.seek(start)
            record = _parse(file.read(end - start), self.data, index)
        try:
            return self._prepare(record)
        except (DataError, ImageError) as error:
            raise DataError(
                f"sample {record.get('id', index)} of {self.data.name} (number {index}): {error}"
            ) from error

    def _prepare(self, record: Mapping[str, Any]) -> Sample:
        paths = record.get("image") or []
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise DataError(f"'image' must be a path or a list of paths, found {paths!r:.80}")
        ids, labels = encode_conversation(
            self.tokenizer,
            record.get("conversations", ()),
            template=self.template,
            image_token_id=self.image_token_id,
        )
        markers = ids.count(self.image_token_id)
        if markers != len(paths):
            raise DataError(
                f"one {IMAGE_TOKEN} marker is needed per image, found {markers} markers and {len(paths)} images"
            )
        ids, labels = self._expand(ids, labels)
        if self.image_token_id in ids[self.max_length :]:
            raise DataError(
                f"its images end behind max_length {self.max_length} ({self.tokens_per_image} tokens each): raise "
                "max_length or shorten the sample; image tokens are never cut"
            )
        return Sample(
            input_ids=torch.tensor(ids[: self.max_length]),
            labels=torch.tensor(labels[: self.max_length]),
            pixel_values=self._pixels([load_image(self.images / path) for path in paths]),
        )

    def _expand(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Ids and labels with every image id repeated to the image's token count."""
        pairs = zip(ids, labels, strict=True)
        counts = ((i, label, self.tokens_per_image if i == self.image_token_id else 1) for i, label in pairs)
        repeated = [(i, label) for i, label, count in counts for _ in range(count)]
        return [i for i, _ in repeated], [label for _, label in repeated]

    def _pixels(self, images: list[Image.Image]) -> Tensor | None:
        if not images:
            return None
        return self.image_processor(images, return_tensors="pt")["pixel_values"]


def collate(samples: Sequence[Sample], *, pad_token_id: int) -> dict[str, Tensor]:
    """One batch, padded on the right: `input_ids`, `labels`, `attention_mask` [B, L] (int64).

    With images also `pixel_values` [n_images, 3, height, width] in the order of their markers; text alone has none.
    """

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids = [sample["input_ids"] for sample in samples]
    batch = {
        "input_ids": pad(ids, pad_token_id),
        "labels": pad([sample["labels"] for sample in samples], IGNORE_INDEX),
        "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
    }
    pixels = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
    return {**batch, "pixel_values": torch.cat(pixels)} if pixels else batch


def tokens_per_image(processor: LlavaProcessor) -> int:
    """How many LLM tokens the processor gives one image; every image is brought to the same size."""
    blank = Image.new("RGB", (32, 32))
    ids = processor(images=blank, text=processor.image_token)["input_ids"][0]
    return list(ids).count(processor.image_token_id)


def sample_spans(data: Path) -> np.ndarray:
    """First and last-but-one byte of each sample in a JSON list or JSON lines file, int64 [n_samples, 2].

    Raises `DataError` if the file cannot be read, is neither, or is empty.
    """
    try:
        # One character per byte: places in the text are places in the file, and UTF-8 inside strings does not matter.
        text = data.read_bytes().decode("latin-1")
    except OSError as error:
        raise DataError(f"cannot read the data file {data}: {error.strerror}") from error
    first = re.search(r"\S", text)
    if first is not None and first[0] == "[":
        spans = _list_spans(text, first.end(), data)
    else:
        spans = [match.span() for match in re.finditer(r"[^\r\n]*\S[^\r\n]*", text)]
    if not spans:
        raise DataError(f"the data file {data} holds no samples")
    return np.array(spans, dtype=np.int64)


def _list_spans(text: str, position: int, data: Path) -> list[tuple[int, int]]:
    """Places of the objects in a JSON list, whose first value or closing bracket stands at or behind `position`."""
    decoder = json.JSONDecoder(strict=False)
    spans: list[tuple[int, int]] = []

    def skip_space(start: int) -> int:
        while text[start].isspace():
            start += 1
        return start

    try:
        position = skip_space(position)
        while text[position] != "]":
            value, end = decoder.raw_decode(text, position)
            if not isinstance(value, dict):
                raise DataError(f"sample number {len(spans)} of {data} must be a JSON object, found {value!r:.80}")
            spans.append((position, end))
            position = skip_space(end)
            if text[position] == ",":
                position = skip_space(position + 1)
            elif text[position] != "]":
                raise DataError(f"the data file {data} is no JSON list: expected ',' or ']' at byte {position}")
    except (IndexError, json.JSONDecodeError) as error:
        raise DataError(
            f"the data file {data} is no JSON list: it breaks off or is damaged at byte {position}"
        ) from error
    return spans


def _parse(line: bytes, data: Path, index: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"sample number {index} of {data.name} is no JSON object: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"sample number {index} of {data.name} must be a JSON object, found {type(record).__name__}")
    return record
