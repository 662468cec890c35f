"""One training sample from one record: token ids and labels, image tokens included, and pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from llava_stf.data.records import Reason, SampleError, check_media, conversation, record_images, sample_id
from llava_stf.data.templates import Template, encode_chat
from llava_stf.errors import CheckpointError, DataError, ImageError, PromptError
from llava_stf.images import load_image
from llava_stf.models.fusion.tiles import has_tiles, number_of_tiles, shows_several_whole, sizes_in_prompt
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN
from llava_stf.models.llava_stf.conversation import ANSWER_TAG, END, IGNORE_INDEX, encode_conversation

if TYPE_CHECKING:
    from llava_stf.data.sources import Records


class Sample(TypedDict):
    """One training sample: ids and labels (int64 [L]), its images, and what else the model takes to show them.

    The images are float32 [n, 3, height, width], n of images, or of the tiles of all images. `choices` has lists by the
    names that the model's `forward` knows: `image_sizes` for one, height and width of each image.
    """

    sample_id: str
    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor | None
    choices: dict[str, list[Any]]


class Preparation:
    """Makes samples of records.

    Args:
        processor: gives the tokenizer, the image preprocessing and the number of tokens an image takes.
        name: of the data set, for messages.
        images: folder that image paths start from.
        template: `"v1"` or `"chat"` for conversations, see `template_of`; `"plain"` for captions.
        max_length: longest sequence, image tokens included. Text beyond is cut; image tokens never are.

    Raises:
        CheckpointError: with `"v1"` no answer could be told from padding, or from the next question.
    """

    def __init__(
        self, processor: LlavaProcessor, *, name: str, images: Path, template: Template, max_length: int
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self.image_token_id = processor.image_token_id
        self.tokens_per_image = tokens_per_image(processor)
        self._tiled = has_tiles(processor.image_processor)
        self.name = name
        self.images = images
        self.template: Template = template
        self.max_length = max_length
        if template == "v1":
            _check_end_token(self.tokenizer)

    def __call__(self, record: Mapping[str, Any], number: int) -> Sample:
        """The sample of a record.

        Raises:
            SampleError: the record is malformed; it names the record.
        """
        ids, labels, images = self.read_sequence(record, number)
        pixels, choices = self._show(images)
        return Sample(
            sample_id=sample_id(record, number),
            input_ids=torch.tensor(ids[: self.max_length]),
            labels=torch.tensor(labels[: self.max_length]),
            pixel_values=pixels,
            choices=choices,
        )

    def read_sequence(self, record: Mapping[str, Any], number: int) -> tuple[list[int], list[int], list[Image.Image]]:
        """Ids and labels, not cut, with every image's id repeated to its token count, and the images.

        Raises:
            SampleError: as `__call__`, with the reason "no target" if it holds nothing to learn.
        """
        ids, labels = self.encode(record, number)
        images = self.load(record, number)
        ids, labels = self._expand(ids, labels, images)
        if self.image_token_id in ids[self.max_length :]:
            sentence = (
                f"its images, {ids.count(self.image_token_id)} tokens, end behind max_length {self.max_length}: "
                "raise max_length or shorten the sample; image tokens are never cut"
            )
            raise self._error("too long", record, number, sentence)
        if not has_target(labels[: self.max_length]):
            sentence = f"its first answer begins behind max_length {self.max_length}: raise max_length or shorten it"
            raise self._error("no target", record, number, sentence)
        return ids, labels, images

    def read(self, records: Records, number: int) -> Mapping[str, Any]:
        """The record of that number.

        Raises:
            SampleError: there is none, or it cannot be read.
        """
        try:
            return records[number]
        except DataError as error:
            raise SampleError("no record", str(number), f"sample number {number} of {self.name}: {error}") from error

    def encode(self, record: Mapping[str, Any], number: int) -> tuple[list[int], list[int]]:
        """Ids and labels, not cut, with one id for each image; no image is read.

        Raises:
            SampleError: as `read_sequence`.
        """
        reason: Reason = "other media"
        try:
            check_media(record)
            reason = "no record"
            sources = record_images(record, self.images)
            reason = "turn order"
            turns = conversation(record)
            _check_texts(turns)
            ids, labels = self._encode(turns)
        except UnicodeEncodeError as error:
            sentence = f"its text is no valid Unicode ({error.reason}, found {error.object[error.start : error.end]!a})"
            raise self._error("broken text", record, number, sentence) from error
        except (DataError, PromptError) as error:
            raise self._error(reason, record, number, str(error).rstrip(".")) from error
        markers = ids.count(self.image_token_id)
        if markers != len(sources):
            sentence = (
                f"one {IMAGE_TOKEN} marker is needed per image, found {markers} markers and {len(sources)} images"
            )
            raise self._error("image markers", record, number, sentence)
        if not has_target(labels):
            sentence = (
                "it has nothing to learn: every question needs an answer, and no text may hold "
                f"{ANSWER_TAG.strip()!r} or {END!r}, by which the prompt tells answers"
            )
            raise self._error("no target", record, number, sentence)
        return ids, labels

    def _encode(self, turns: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
        if self.template == "chat":
            return encode_chat(self.processor, turns)
        return encode_conversation(self.tokenizer, turns, template=self.template, image_token_id=self.image_token_id)

    def load(self, record: Mapping[str, Any], number: int) -> list[Image.Image]:
        """The record's images, as they are."""
        images = []
        for source in record_images(record, self.images):
            try:
                images.append(load_image(source))
            except ImageError as error:
                reason: Reason = "missing image" if isinstance(error.__cause__, FileNotFoundError) else "broken image"
                raise self._error(reason, record, number, str(error).rstrip(".")) from error
        return images

    def _error(self, reason: Reason, record: Mapping[str, Any], number: int, sentence: str) -> SampleError:
        name = sample_id(record, number)
        return SampleError(reason, name, f"sample {name} of {self.name} (number {number}): {sentence}")

    def _show(self, images: list[Image.Image]) -> tuple[Tensor | None, dict[str, list[Any]]]:
        """Pixels of images, or of their tiles without padding, and what else tells how they are shown; see `Sample`."""
        if not images:
            return None, {}
        if not self._tiled:
            return self.image_processor(images, return_tensors="pt")["pixel_values"], {}
        made = self.processor.process_images(images, [len(images)], {"return_tensors": "pt"})
        sizes = self.processor.image_sizes_of(made)
        pinpoints, side = self.image_processor.image_grid_pinpoints, made["pixel_values"].shape[-1]
        counts = [number_of_tiles(size, pinpoints, side) for size in sizes]
        pixels = [tiles[:count] for tiles, count in zip(made["pixel_values"], counts, strict=True)]
        choices: dict[str, list[Any]] = {"image_sizes": [(image.height, image.width) for image in images]}
        if shows_several_whole(self.processor):
            choices["batch_num_images"] = [len(images)]
        return torch.cat(pixels), choices

    def tokens_of(self, images: Sequence[Image.Image]) -> list[int]:
        """LLM tokens of each image of a sample."""
        if not self._tiled:
            return [self.tokens_per_image] * len(images)
        sizes = [(image.height, image.width) for image in images]
        return self.processor.num_image_tokens(sizes_in_prompt(self.processor, sizes))

    def _expand(self, ids: list[int], labels: list[int], images: Sequence[Image.Image]) -> tuple[list[int], list[int]]:
        """Ids and labels with every image id repeated to the image's token count."""
        left = iter(self.tokens_of(images))
        pairs = zip(ids, labels, strict=True)
        counts = ((i, label, next(left) if i == self.image_token_id else 1) for i, label in pairs)
        repeated = [(i, label) for i, label, count in counts for _ in range(count)]
        return [i for i, _ in repeated], [label for _, label in repeated]


def _check_texts(turns: Sequence[Mapping[str, Any]]) -> None:
    """Raises `DataError` for turns that are no texts, `UnicodeEncodeError` for a text that is none (half a pair)."""
    try:
        for turn in turns:
            turn["value"].encode()
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"every turn must be an object with the texts 'from' and 'value', found {turns!r:.200}"
        ) from error


def has_target(labels: Sequence[int]) -> bool:
    """Whether there is a token to learn. The first one never is: nothing stands before it that could foretell it."""
    return any(label != IGNORE_INDEX for label in labels[1:])


def _check_end_token(tokenizer: Any) -> None:
    if END not in tokenizer.get_vocab():
        raise CheckpointError(
            f"the v1 prompt ends every answer with {END!r}, and the tokenizer has no such token: take a base whose "
            "tokenizer has it, as LLaVA-1.5's does"
        )
    if tokenizer.pad_token == END:
        raise CheckpointError(
            f"the tokenizer's pad token is {END!r}, which ends every answer, so ends cannot be told from padding: save "
            "the base with another one (tokenizer.pad_token = tokenizer.unk_token)"
        )


def tokens_per_image(processor: LlavaProcessor) -> int:
    """How many LLM tokens the processor gives one image, in a family of tiles a small one."""
    blank = Image.new("RGB", (32, 32))
    ids = processor(images=blank, text=processor.image_token)["input_ids"][0]
    return list(ids).count(processor.image_token_id)
