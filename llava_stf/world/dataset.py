"""Writes the world to disk in LLaVA's format, and yields its text for a tokenizer.

Image `index` of a `seed` is the same in every process. Its generator is seeded with [split, seed, index, part]: the
first word is 0 for training and 1 for the held-out split, so the two share no stream whatever their seeds are.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_stf.errors import DataError, LlavaStfError
from llava_stf.io.publish import write_file
from llava_stf.world.drawing import render
from llava_stf.world.families import ALL, FAMILIES, ask, caption
from llava_stf.world.questions import Question
from llava_stf.world.scene import MOST_OBJECTS, SIDE, Scene, sample_scene

SPLITS = {"train": 0, "held_out": 1}
IMAGES_PER_FOLDER = 1000
INSTRUCT = "instruct.json"
CAPTION_REQUEST = "Describe the picture."


def generator(split: str, seed: int, index: int, part: int) -> np.random.Generator:
    """The random stream of one image: `part` 0 draws scene and pixels, 1 the questions.

    Raises:
        DataError: an unknown split, or seed and index that are no whole numbers of 32 bits (others would spill into
            their neighbours' words).
    """
    if split not in SPLITS:
        raise DataError(f"Expected a split of {', '.join(SPLITS)}, found {split!r}.")
    if not all(isinstance(number, Integral) and 0 <= number < 2**32 for number in (seed, index)):
        raise DataError(f"Expected seed and index from 0 to 2**32 - 1, found {seed!r} and {index!r}.")
    return np.random.default_rng([SPLITS[split], seed, index, part])


def draw(
    index: int, *, seed: int = 0, split: str = "train", max_objects: int = 4, side: int = SIDE
) -> tuple[Scene, np.ndarray]:
    """One image: its scene and its pixels, uint8 RGB [side, side, 3]; see `sample_scene`."""
    rng = generator(split, seed, index, 0)
    scene = sample_scene(rng, max_objects=max_objects, side=side)
    return scene, render(scene, rng)


def questions_of(
    scene: Scene, index: int, *, seed: int = 0, split: str = "train", families: Sequence[str] = ALL, count: int = 8
) -> list[Question]:
    """The questions that the data set asks about its image `index`."""
    return ask(scene, generator(split, seed, index, 1), families=families, count=count)


def turns_about_image(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions and their answers as one conversation in LLaVA's format, the image before the first."""
    turns: list[dict[str, str]] = []
    for asked, answer in pairs:
        marker = "" if turns else "<image>\n"
        turns += [{"from": "human", "value": marker + asked}, {"from": "gpt", "value": answer}]
    return turns


def corpus(count: int, seed: int) -> Iterator[str]:
    """Every text of the first `count` training images, without drawing them: questions, answers, captions."""
    for index in range(count):
        scene = sample_scene(generator("train", seed, index, 0))
        for question in questions_of(scene, index, seed=seed):
            yield question.text
            yield question.answer
        yield caption(scene)


def write_dataset(
    out: Path,
    count: int,
    seed: int,
    *,
    families: Sequence[str] = ALL,
    captions: bool = False,
    describe: bool = False,
    max_objects: int = 4,
    side: int = SIDE,
    questions_per_image: int = 8,
    split: str = "train",
    workers: int = 1,
    progress: bool = False,
) -> dict[str, float]:
    """Write `out`/images/000/000000.png ..., with `captions` align.json, held out questions.json, and instruct.json.

    `describe` ends every conversation of instruct.json with a request for the caption, a target for every object. That
    file comes last and is whole: where it stands, the data set is.

    Returns per family the accuracy of always giving its most frequent answer.

    Raises:
        DataError: an unknown family or split, counts that make no image, a `side` that cannot be, or an `out` that
            holds a data set already or cannot be written.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise DataError(f"Expected families of {', '.join(ALL)}, found {', '.join(unknown) or 'none'}.")
    if count < 1 or questions_per_image < 1 or not 1 <= max_objects <= MOST_OBJECTS:
        found = f"{count} images, {questions_per_image} questions, {max_objects} objects"
        raise DataError(f"Expected at least one image and question and 1 to {MOST_OBJECTS} objects, found {found}.")
    sample_scene(generator(split, seed, count - 1, 0), side=side)  # which refuses what cannot be
    if (out / INSTRUCT).exists():
        raise DataError(f"{out} holds a data set already, which is not overwritten; remove it or name another folder.")
    try:
        for index in range(0, count, IMAGES_PER_FOLDER):
            (out / _path(index)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(out, error) from error
    job = partial(
        _write_image, out=out, seed=seed, split=split, families=tuple(families), max_objects=max_objects,
        side=side, count=questions_per_image,
    )  # fmt: skip
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        rows = pool.map(job, range(count), chunksize=64) if pool is not None else map(job, range(count))
        results = list(_tracked(rows, count) if progress else rows)
    if captions:
        _write_json(out / "align.json", [_align(index, text) for index, (_, text) in enumerate(results)])
    if split == "held_out":
        _write_json(
            out / "questions.json",
            [_record(index, turn, q) for index, (asked, _) in enumerate(results) for turn, q in enumerate(asked)],
        )
    conversations = [
        _instruct(index, asked, text, describe) for index, (asked, text) in enumerate(results) if asked or describe
    ]
    _write_json(out / INSTRUCT, conversations)
    return prior_accuracy(question for asked, _ in results for question in asked)


def prior_accuracy(questions: Iterable[Question]) -> dict[str, float]:
    """Per family, the share of its most frequent answer: what one gets without looking at image or question."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        answers[question.family][question.answer] += 1
    return {family: max(seen.values()) / seen.total() for family, seen in sorted(answers.items())}


def _path(index: int) -> str:
    return f"images/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.png"


def _write_image(
    index: int, *, out: Path, seed: int, split: str, families: Sequence[str], max_objects: int, side: int, count: int
) -> tuple[list[Question], str]:
    scene, pixels = draw(index, seed=seed, split=split, max_objects=max_objects, side=side)
    try:
        Image.fromarray(pixels).save(out / _path(index), compress_level=1)
    except OSError as error:
        raise _cannot_write(out / _path(index), error) from error
    return questions_of(scene, index, seed=seed, split=split, families=families, count=count), caption(scene)


def _instruct(index: int, questions: list[Question], text: str, describe: bool) -> dict[str, Any]:
    pairs = [(question.text, question.answer) for question in questions] + [(CAPTION_REQUEST, text)] * describe
    return {"id": f"{index:06d}", "image": _path(index), "conversations": turns_about_image(pairs)}


def _align(index: int, text: str) -> dict[str, Any]:
    return {"id": f"{index:06d}", "image": _path(index), "conversations": turns_about_image([(CAPTION_REQUEST, text)])}


def _record(index: int, turn: int, question: Question) -> dict[str, Any]:
    return {
        "id": f"{index:06d}-{turn}",
        "image": _path(index),
        "family": question.family,
        "kind": question.kind,
        "question": question.text,
        "answer": question.answer,
        "options": list(question.options),
    }


def _write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    try:
        write_file(path, f"[\n{lines}\n]\n")
    except LlavaStfError as error:
        raise DataError(str(error)) from error


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written: {error.strerror or error}; name another folder.")


def _tracked(rows: Iterable[Any], total: int) -> Iterable[Any]:
    from rich.progress import track

    return track(rows, description="Drawing images", total=total)
