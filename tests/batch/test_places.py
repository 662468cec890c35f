"""A batch reads and writes objects as it does files; the store is a folder behind pyarrow's interface, S3 a server."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from pyarrow.parquet import write_table

from llava_stf.batch.job import BatchJob
from llava_stf.batch.places import S3Path, open_place
from llava_stf.batch.rows import open_rows
from llava_stf.batch.run import run_batch
from llava_stf.batch.shards import Shards, open_output
from llava_stf.errors import DataError, LlavaStfError

from .conftest import QUESTION


def objects(folder: Path) -> S3Path:
    """What is in a folder, as the objects of a bucket of its name."""
    return S3Path(folder.name, SubTreeFileSystem(str(folder.parent), LocalFileSystem()))


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


def test_objects_are_answered_into_objects_as_files_are_into_files(album: Path, tmp_path: Path, bucket: Path) -> None:
    job = BatchJob(album / "more", tmp_path / "files", question=QUESTION, shard_size=3, dtype="float32")
    run_batch(job)
    summary = run_batch(replace(job, input=objects(album) / "more", output=objects(bucket)))
    assert (summary.rows, summary.errors, summary.rows_now) == (8, 0, 8)
    written = {path.name: path.read_bytes() for path in bucket.iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}
    assert run_batch(replace(job, input=objects(album) / "more", output=objects(bucket))).rows_now == 0


def test_rows_of_objects_are_those_of_files(lines: Callable[..., Path], album: Path, tmp_path: Path) -> None:
    path = lines(
        {"id": 7, "image": "album/01.png", "question": "Own?"},
        {"images": ["album/02.png", "./album/more/03.png"]},
        "no json",
        {"image": "album/none.png"},
        {"image": "/album/01.png"},
        {"image": "\ud800.png"},
    )
    (tmp_path / "album").symlink_to(album)
    write_table(pa.table({"image": [(album / "01.png").read_bytes(), None], "id": ["a", "b"]}), tmp_path / "r.parquet")
    (album / ".hidden.png").write_bytes(b"")
    try:
        for name in ("rows.jsonl", "r.parquet", "album"):
            options = {"question": "For all?", "images": None, "allow_urls": False}
            there, here = (open_rows(place / name, **options) for place in (objects(tmp_path), tmp_path))
            assert (len(there), there.fingerprint) == (len(here), here.fingerprint)
            for index in range(len(here)):
                one, other = there[index], here[index]
                assert one.id == other.id
                if one.reason is not None:
                    assert one.reason == other.reason or one.reason.startswith("No image file at ")
                    continue
                contents = (image if isinstance(image, bytes) else Path(image).read_bytes() for image in other.images)
                assert (one.question, one.images) == (other.question, tuple(contents))
        reasons = [open_rows(objects(tmp_path) / path.name, **options)[index].reason for index in range(6)]
        assert [reason is None for reason in reasons] == [True, True, False, False, False, False]
    finally:
        (album / ".hidden.png").unlink()


def test_what_is_no_input_is_said_in_a_sentence(bucket: Path) -> None:
    def sentence(place: S3Path) -> str:
        with pytest.raises(DataError) as caught:
            open_rows(place, question="?", images=None, allow_urls=False)
        return str(caught.value)

    (bucket / "empty").mkdir()
    (bucket / "a.txt").write_text("none")
    assert "s3://bucket/none.jsonl: No such file" in sentence(objects(bucket) / "none.jsonl")
    assert "s3://bucket/empty holds no image" in sentence(objects(bucket) / "empty")
    assert "s3://bucket/a.txt is none of these" in sentence(objects(bucket) / "a.txt")


def test_object_that_cannot_be_reached_any_more_ends_the_run_and_not_the_row(album: Path, bucket: Path) -> None:
    (bucket / "a.png").write_bytes((album / "01.png").read_bytes())
    rows = open_rows(objects(bucket), question="?", images=None, allow_urls=False)
    (bucket / "a.png").unlink()
    (bucket / "a.png").symlink_to("a.png")  # what no one can open
    with pytest.raises(LlavaStfError, match=r"^Cannot read s3://bucket/a\.png: "):
        rows[0]


def test_shard_of_objects_is_written_once_and_a_folder_of_objects_is_for_one_command(bucket: Path) -> None:
    folder = objects(bucket) / "runs" / "output"
    (bucket / "runs" / "output").mkdir(parents=True)  # which objects do not need
    open_output(folder, {"model": "a"})
    shards = Shards(folder, 5, 2)
    with shards.claim(1) as claim:
        assert claim is not None
        claim.write([{"id": "2", "index": 2, "answer": "?", "error": None}])
    with shards.claim(1) as again:
        assert again is None
    assert shards.open() == [0, 2]
    with pytest.raises(DataError, match=r"output of another command \(model was a, now it is b\)"):
        open_output(folder, {"model": "b"})
    (bucket / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"s3://bucket holds something else than a batch, thesis\.txt"):
        open_output(objects(bucket), {"model": "a"})


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Has a server of S3's protocol answer with one status, whatever it is asked."""
    told = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(told[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    yield lambda status: told.__setitem__(0, status)
    server.shutdown()
    server.server_close()


def test_bucket_that_is_not_there_or_not_for_this_user_is_said_before_anything_is_read(
    s3: Callable[[int], None], album: Path
) -> None:
    job = BatchJob(album, "s3://photos/answers", question=QUESTION, model="nowhere")
    s3(404)
    with pytest.raises(DataError, match=r"^There is no bucket photos for s3://photos/answers: "):
        run_batch(job)
    s3(403)
    with pytest.raises(DataError, match=r"bucket of s3://photos/answers \(.*ACCESS_DENIED.*AWS_ACCESS_KEY_ID"):
        run_batch(job)
    with pytest.raises(DataError, match="bucket of s3://photos/in"):
        run_batch(replace(job, input="s3://photos/in", output="answers"))
    assert not os.path.exists("answers")


@pytest.mark.parametrize("place", ["s3://", "s3:///key", "gs://bucket/key", "file:///tmp"])
def test_other_schemes_are_refused(place: str) -> None:
    with pytest.raises(DataError, match=r"expected a path or s3://bucket/key"):
        open_place(place)


def test_place_says_neither_key_nor_secret(bucket: Path) -> None:
    assert str(objects(bucket) / "a" / "b.jsonl") == "s3://bucket/a/b.jsonl"
    assert json.dumps(str(open_place("a/b"))) == '"a/b"'
