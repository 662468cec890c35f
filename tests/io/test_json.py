"""JSON with byte-order marks is read, and anything but one object is refused."""

import json

import pytest

from llava_stf.errors import CheckpointError
from llava_stf.io.json import parse_json, read_json, without_byte_order_marks

VALUE = {"name": "\N{CJK UNIFIED IDEOGRAPH-4F60}", "list": [1, None]}
TEXT = json.dumps(VALUE, ensure_ascii=False)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_that_json_knows_is_read(encoding, tmp_path):
    file = tmp_path / "value.json"
    file.write_bytes(TEXT.encode(encoding))
    assert read_json(file) == VALUE


def test_a_mark_in_a_text_is_no_part_of_it():
    assert parse_json("\ufeff" + TEXT) == VALUE


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{} {}", b"{}]", b"\xff\xff\xff", b"[" * 200_000])
def test_anything_else_is_refused_with_the_files_name(content, tmp_path):
    file = tmp_path / "value.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"value\.json"):
        read_json(file)


def test_a_folder_without_marks_is_read_itself_and_others_as_a_copy(tmp_path):
    (tmp_path / "a.json").write_text(TEXT, encoding="utf-8")
    (tmp_path / "weights").write_bytes(b"\0" * 9)
    with without_byte_order_marks(tmp_path) as folder:
        assert folder == tmp_path
    (tmp_path / "b.json").write_text(TEXT, encoding="utf-16")
    with without_byte_order_marks(tmp_path) as folder:
        assert [json.loads((folder / name).read_text(encoding="utf-8")) for name in ("a.json", "b.json")] == [VALUE] * 2
        assert (folder / "weights").read_bytes() == b"\0" * 9
    assert not folder.exists()
