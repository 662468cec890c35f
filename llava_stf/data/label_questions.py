"""What a model is asked when it writes training data: prompts about a folder of images, or a data file's turns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from llava_stf.data.records import conversation, sample_id
from llava_stf.data.sources import visible_files
from llava_stf.errors import DataError
from llava_stf.images import FORMATS
from llava_stf.io.json import read_text
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN

# Asked about every image of a folder, for answers of all lengths.
PROMPTS = (
    "Describe this picture in one sentence.",
    "Describe this picture in detail: what it shows, where things are, and what is written in it, if anything.",
    "What stands out most in this picture, and what does it look like?",
    "Which objects can be seen here? Answer with a short list.",
)


class Questions(Protocol):
    """Records by number; `[number]` raises `DataError` for what is no record. Answers in them are passed over."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


class ImageQuestions:
    """Every prompt about every image of a folder and below, image by image in the order of their paths.

    Args:
        folder: where the images are; hidden files and folders are none.
        prompts: what to ask.
        images: the folder that image paths start from: `folder`, or one above it.

    Raises:
        DataError: there is no image, or a prompt is empty or holds an image marker.
    """

    def __init__(self, folder: Path, prompts: Sequence[str], images: Path) -> None:
        for prompt in prompts:
            if not prompt.strip() or IMAGE_TOKEN in prompt:
                raise DataError(f"a prompt needs words and no {IMAGE_TOKEN}, which is put before it; found {prompt!r}")
        root = images.absolute()
        if not folder.absolute().is_relative_to(root):
            raise DataError(f"the images are in {folder}, so their paths cannot start from {images}")
        self.paths = [path.relative_to(root).as_posix() for path in image_files(folder)]
        self.name, self.prompts = folder.name, prompts

    def __len__(self) -> int:
        return len(self.paths) * len(self.prompts)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        image, prompt = divmod(number, len(self.prompts))
        turn = {"from": "human", "value": f"{IMAGE_TOKEN}\n{self.prompts[prompt]}"}
        return {"id": f"{self.paths[image]}#{prompt}", "image": self.paths[image], "conversations": [turn]}


def image_files(folder: Path) -> list[Path]:
    """The images of a folder and below, absolute, by the text of their paths; hidden files and folders are none.

    Raises:
        DataError: there is none.
    """
    endings = image_endings()
    found = [path for path in visible_files(folder.absolute()) if path.suffix.lower() in endings]
    if not found:
        raise DataError(f"the folder {folder} holds no image ({', '.join(FORMATS)})")
    return sorted(found, key=Path.as_posix)


def image_endings() -> set[str]:
    """How the names of image files end, lower case, each with its dot."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        DataError: there is none, or no such file.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the prompts in {path}: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path} holds no prompt; write one per line")
    return prompts


def human_turns(record: Mapping[str, Any]) -> list[str]:
    """The questions of a record, in order.

    Raises:
        DataError: there is none, or something else than questions.
    """
    turns = conversation(record)
    try:
        spoken = [(turn["from"], turn["value"]) for turn in turns]
        texts = [value for speaker, value in spoken if speaker == "human"]
        empty = sum(not text.replace(IMAGE_TOKEN, "").strip() for text in texts)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"every turn must be an object with the texts 'from' and 'value', found {turns!r:.200}"
        ) from error
    others = [str(speaker) for speaker, _ in spoken if speaker not in ("human", "gpt")]
    if others:
        raise DataError(f"the turns must be of human and gpt, found {', '.join(others):.200}")
    if empty or not texts:
        raise DataError(f"it needs human turns with a question each, found {len(texts)}, of them {empty} empty")
    return texts


def question_key(record: Mapping[str, Any], number: int) -> tuple[str, bytes]:
    """What tells a question from others: its id, and its images and human turns.

    Raises:
        DataError: as `human_turns`.
    """
    asked = [record.get("image"), record.get("images"), human_turns(record)]
    return sample_id(record, number), hashlib.sha256(json.dumps(asked).encode()).digest()
