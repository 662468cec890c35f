"""`llava-stf data mosaic` writes a folder of images that `data label` takes, and refuses bad input in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

OPTIONS = ("--side", 60, "--pieces", 3)


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_a_seed_draws_the_same_images_and_another_seed_others(
    run: Callable[..., Any], images: list[Path], tmp_path: Path
) -> None:
    for name, count, seed in (("one", 5, 0), ("again", 5, 0), ("fewer", 2, 0), ("other", 5, 1)):
        result = run("data", "mosaic", images[0].parent, tmp_path / name, "--count", count, "--seed", seed, *OPTIONS)
        assert (result.code, result.out) == (0, f"{tmp_path / name}: {count} mosaics of 9 pieces\n"), result.err
    one, again, fewer, other = (contents(tmp_path / name) for name in ("one", "again", "fewer", "other"))
    assert one == again
    assert one[:2] == fewer
    assert len({*one, *other}) == 10
    assert {Image.open(path).size for path in (tmp_path / "one").iterdir()} == {(60, 60)}


def test_mosaics_are_labelled_as_any_folder(run: Callable[..., Any], images: list[Path], tmp_path: Path) -> None:
    run("data", "mosaic", images[0].parent, tmp_path / "mosaics", "--count", 2, *OPTIONS)
    options = ("--model", "tiny", "--vision-tokens", 16, "--prompt", "How many shapes are there?")
    result = run("data", "label", tmp_path / "mosaics", tmp_path / "labels.jsonl", *options)
    assert result.code == 0, result.err
    assert "2 samples" in result.out


def test_broken_images_are_counted_and_stop_it_when_they_are_too_many(
    run: Callable[..., Any], images: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(images[0].read_bytes())
    (folder / "b.png").write_bytes(b"torn")
    stopped = run("data", "mosaic", folder, tmp_path / "mosaics", "--count", 9, *OPTIONS)
    assert (stopped.code, stopped.out) == (2, "")
    assert "b.png is empty or not an image" in stopped.err
    assert not (tmp_path / "mosaics").exists()
    result = run("data", "mosaic", folder, tmp_path / "mosaics", "--count", 9, *OPTIONS, "--max-bad-samples", 0.5)
    assert result.code == 0
    assert result.out.endswith("; left out: 1 of 2 samples seen are bad (1 broken image)\n")
    (folder / "a.png").write_bytes(b"torn, too")
    result = run("data", "mosaic", folder, tmp_path / "none", "--count", 9, *OPTIONS, "--max-bad-samples", 1)
    assert (result.code, result.err.splitlines()[-1]) == (2, "none of the 2 images can be read")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere", "out"), "the image folder nowhere does not exist"),
        (("nothing", "out"), "the folder nothing holds no image"),
        (("pictures", "nothing"), "exists already and is not overwritten"),
        (("pictures", "out", "--side", 3, "--pieces", 4), "4 pieces in a row need as many pixels, and side is 3"),
    ],
)
def test_user_errors_are_2_in_one_sentence(
    run: Callable[..., Any], images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(images[0].parent)
    Path("nothing").mkdir()
    result = run("data", "mosaic", *arguments)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nothing", "pictures"]
