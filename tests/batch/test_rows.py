"""Rows come out of folders, JSON lines and parquet with their question and images, or with the sentence why not."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow.parquet import write_table

from llava_stf.batch.rows import Rows, open_rows
from llava_stf.errors import DataError

DEFAULTS: dict[str, Any] = {"question": None, "images": None, "allow_urls": False}


def opened(path: Path, **options: Any) -> Rows:
    return open_rows(path, **{**DEFAULTS, **options})


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_folder_gives_its_images_by_path_with_one_question(album: Path) -> None:
    rows = opened(album, question="What?")
    found = [rows[index] for index in range(len(rows))]
    assert len(found) == 24
    assert [row.id for row in found] == sorted(row.id for row in found)
    assert (found[0].id, found[-1].id, found[3].index) == ("01.png", "more/21.png", 3)
    assert {row.question for row in found} == {"What?"}
    assert found[-1].images == (album / "more" / "21.png",)


def test_line_has_its_own_question_or_the_one_for_all(lines: Callable[..., Path], tmp_path: Path) -> None:
    path = lines({"id": 7, "image": "a.png", "question": "Own?"}, "", {"images": ["b.png", "/c.png"]})
    rows = opened(path, question="For all?")
    assert (len(rows), rows[0].id, rows[0].question) == (2, 7, "Own?")
    assert (rows[1].id, rows[1].index, rows[1].question) == ("1", 1, "For all?")
    assert rows[1].images == (tmp_path / "b.png", Path("/c.png"))
    (tmp_path / "elsewhere").mkdir()
    assert opened(path, images=tmp_path / "elsewhere")[0].images == (tmp_path / "elsewhere" / "a.png",)


def test_image_can_stand_in_the_line_itself(lines: Callable[..., Path]) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(0)).decode()
    rows = opened(lines({"image": url, "question": "?"}, {"image": url[:-3] + "%", "question": "?"}))
    assert rows[0].images == (png(0),)
    assert rows[1].reason is not None
    assert rows[1].reason.startswith("data:image/png;base64 cannot be read: ")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": 1', "The line is no JSON: "),
        ("[" * 100_000, "The line is no JSON: "),
        ('"text"', "The line must be a JSON object, found str"),
        ('{"image": "a.png"}', "The row has no 'question'"),
        ('{"image": "a.png", "question": ["?"]}', "'question' must be a text, found ['?']"),
        ('{"image": "a.png", "question": "\\ud800"}', "'question' is no valid Unicode"),
        ('{"question": "?"}', "The row has no image"),
        ('{"images": [], "question": "?"}', "The row has no image"),
        ('{"image": 5, "question": "?"}', "'image' must be a path or a list of paths, found 5"),
        ('{"image": "HTTP://a/b.png", "question": "?"}', "HTTP://a/b.png is not fetched: URLs need to be allowed"),
    ],
    ids=["cut", "deep", "no-object", "no-question", "list", "surrogate", "no-image", "empty", "number", "url"],
)
def test_a_reason_belongs_to_its_row_alone(lines: Callable[..., Path], line: str, reason: str) -> None:
    good = {"id": "good", "image": "a.png", "question": "?"}
    rows = opened(lines(good, line, good))
    assert rows[1].reason is not None
    assert rows[1].reason.startswith(reason)
    assert (rows[0].reason, rows[2].reason, rows[2].id, rows[2].index) == (None, None, "good", 2)


def test_fault_keeps_the_id_of_its_row(lines: Callable[..., Path]) -> None:
    assert opened(lines({"id": "mine", "image": "a.png"}))[0].id == "mine"


def test_urls_are_kept_where_they_are_allowed(lines: Callable[..., Path]) -> None:
    rows = opened(lines({"image": "https://a/b.png", "question": "?"}), allow_urls=True)
    assert rows[0].images == ("https://a/b.png",)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """100 rows in row groups of 7 with columns that a data set of Hugging Face has."""
    cells = [{"bytes": png(index), "path": None} for index in range(100)]
    table = pa.table(
        {"id": range(100), "image": cells, "question": [f"{i}?" for i in range(100)], "answer": ["x"] * 100}
    )
    write_table(table, tmp_path / "rows.parquet", row_group_size=7)
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("order", ["forwards", "backwards", "mixed"])
def test_parquet_rows_are_found_in_any_order(parquet: Path, order: str) -> None:
    rows = opened(parquet)
    numbers = list(range(100))
    if order == "backwards":
        numbers.reverse()
    elif order == "mixed":
        numbers = np.random.default_rng(0).permutation(100).tolist()
    for number in numbers:
        row = rows[number]
        assert (row.index, row.id, row.question, row.images) == (number, number, f"{number}?", (png(number),))


def test_parquet_takes_paths_and_lists_of_bytes(tmp_path: Path) -> None:
    table = pa.table({"images": [[png(1), png(2)], [png(3)]], "id": ["a", None]})
    write_table(table, tmp_path / "lists.parquet")
    rows = opened(tmp_path / "lists.parquet", question="?")
    assert (rows[0].images, rows[0].id, rows[1].id) == ((png(1), png(2)), "a", "1")
    write_table(pa.table({"image": ["x.png"]}), tmp_path / "paths.parquet")
    assert opened(tmp_path / "paths.parquet", question="?")[0].images == (tmp_path / "x.png",)


def test_damaged_pages_of_parquet_are_faults_of_their_rows(parquet: Path) -> None:
    cells = [np.random.default_rng(index).bytes(200) for index in range(100)]
    write_table(pa.table({"image": cells}), parquet, row_group_size=7)
    content = bytearray(parquet.read_bytes())
    place = content.index(cells[50])
    content[place - 4 : place] = b"\xff" * 4  # its length
    parquet.write_bytes(content)
    rows = opened(parquet, question="?")
    reasons = [index for index in range(100) if rows[index].reason is not None]
    assert reasons == list(range(49, 56))  # those of its row group
    assert rows[48].images == (cells[48],)
    assert rows[56].images == (cells[56],)


def test_fingerprint_changes_with_the_content_and_not_with_the_place(
    album: Path, parquet: Path, lines: Callable[..., Path], tmp_path: Path
) -> None:
    path = lines({"image": "a", "question": "one?"})
    before = opened(path).fingerprint
    assert opened(path.rename(tmp_path / "moved.jsonl")).fingerprint == before
    assert opened(lines({"image": "a", "question": "two?"})).fingerprint != before
    before = opened(parquet).fingerprint
    assert opened(parquet.rename(tmp_path / "moved.parquet")).fingerprint == before
    write_table(pa.table({"image": ["a"] * 100}), parquet)
    assert opened(parquet).fingerprint != before
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(0))
    before = opened(folder, question="?").fingerprint
    (folder / "b.png").write_bytes(png(0))
    assert opened(folder, question="?").fingerprint != before


def test_input_that_is_none_is_refused_in_a_sentence(album: Path, lines: Callable[..., Path], tmp_path: Path) -> None:
    def sentence(path: Path, **options: Any) -> str:
        with pytest.raises(DataError) as caught:
            opened(path, **options)
        return str(caught.value)

    assert "say what to ask about each of them (--question)" in sentence(album)
    assert "holds the images itself" in sentence(album, question="?", images=tmp_path)
    assert "No such file" in sentence(tmp_path / "missing.jsonl")
    assert "is none of these: a folder, JSON lines" in sentence(album / "01.png")
    assert "holds no rows" in sentence(lines("", " "))
    assert "is one JSON list" in sentence(lines("[{}]"))
    assert "does not exist" in sentence(lines({"image": "a"}), images=tmp_path / "nowhere")
    write_table(pa.table({"photo": [b""]}), tmp_path / "wrong.parquet")
    assert "has no column 'image' or 'images', but photo" in sentence(tmp_path / "wrong.parquet")
    (tmp_path / "wrong.parquet").write_bytes(b"PAR1 not really")
    assert "Cannot read" in sentence(tmp_path / "wrong.parquet")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in sentence(tmp_path / "empty", question="?")
