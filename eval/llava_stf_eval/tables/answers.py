"""The results that tables set beside each other, as `llava_stf_eval.drawn` writes them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from llava_stf.errors import DataError
from llava_stf.io.json import parse_json

FIELDS = ("seed", "questions", "images", "families", "accuracy", "vision_tokens")


def read_measured(path: Path) -> Any:
    """What a measuring command wrote as JSON.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; measure it first.") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged, {error}; remove it and measure it again.") from error


def read_answers(paths: Iterable[Path], *, of_one_seed: bool = True) -> list[list[dict[str, Any]]]:
    """The results in each file, if all are about the same questions: a quick try's must not be averaged with a run's.

    Args:
        paths: of files that `llava_stf_eval.drawn` wrote.
        of_one_seed: whether the held-out images must be those of one seed. Where not, those of another seed need only
            be as many, with questions of the same families.

    Returns:
        For each path, the results of its file.

    Raises:
        DataError: two results are about other questions, or a file holds something else; it names the files.
    """
    read = [(path, read_measured(path)) for path in paths]
    for path, results in read:
        if not isinstance(results, list) or not all(_is_result(result) for result in results):
            raise DataError(f"{path} holds no results of llava_stf_eval.drawn; move it out of the folder.")
    told = [(path, result) for path, results in read for result in results]
    for (one, mine), (other, theirs) in combinations(told, 2):
        differ = (of_one_seed or mine["seed"] == theirs["seed"]) and _questions(mine) != _questions(theirs)
        if differ or _kind(mine) != _kind(theirs):
            raise DataError(
                f"Expected results about the same questions, found {one} about {_named(mine)} and {other} about "
                f"{_named(theirs)}; move those of another run out of the folder, or ask again."
            )
    return [results for _, results in read]


def read_kinds(folder: Path, kinds: Iterable[str], *, of_one_seed: bool = True) -> dict[str, dict[str, list[Any]]]:
    """The results in the files KIND-SEED.json of a folder, by kind and by seed, without kinds that it has none of.

    Raises:
        DataError: as `read_answers`.
    """
    files = [(kind, path) for kind in kinds for path in sorted(folder.glob(f"{kind}-[0-9]*.json"))]
    found: dict[str, dict[str, list[Any]]] = {}
    answers = read_answers((path for _, path in files), of_one_seed=of_one_seed)
    for (kind, path), results in zip(files, answers, strict=True):
        found.setdefault(kind, {})[path.stem.removeprefix(f"{kind}-")] = results
    return found


def _is_result(result: Any) -> bool:
    return isinstance(result, dict) and result.keys() >= set(FIELDS)


def _questions(result: dict[str, Any]) -> tuple[int, int]:
    return result["seed"], result["questions"]


def _kind(result: dict[str, Any]) -> tuple[int, set[str]]:
    return result["images"], set(result["families"])


def _named(result: dict[str, Any]) -> str:
    families = ", ".join(result["families"])
    return f"{result['questions']} on {result['images']} images of seed {result['seed']} ({families})"
