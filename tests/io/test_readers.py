"""Readers of what users write treat byte-order marks, a second value, `null` and depth alike."""

import json

import pytest

from llava_stf.batch.sources import JsonLines
from llava_stf.data.label_questions import read_prompts
from llava_stf.data.sources import JsonRecords
from llava_stf.errors import LlavaStfError
from llava_stf.io.json import read_json
from llava_stf.io.options import read_yaml
from llava_stf.serving.request_body import Bounds, parse_body

VALUE = {"id": "a", "conversations": [], "image": "a.png"}
READERS = {
    "config": read_json,
    "records": lambda path: JsonRecords(path)[0],
    "lines": lambda path: JsonLines(path)[0],
    "options": read_yaml,
    "request": lambda path: parse_body(bytearray(path.read_bytes()), Bounds(4096, 10**6, 8)).fields,
}


@pytest.fixture(params=READERS)
def read(request, tmp_path):
    """What a reader makes of a content."""

    def run(content):
        path = tmp_path / "data.json"
        path.write_bytes(content)
        return READERS[request.param](path)

    return run


def test_a_byte_order_mark_is_passed_over(read):
    assert read(b"\xef\xbb\xbf" + json.dumps(VALUE).encode()) == VALUE


@pytest.mark.parametrize("other", [b"{}", b"null", b"}"])
def test_what_stands_behind_a_value_is_an_error(read, other):
    with pytest.raises(LlavaStfError):
        read(json.dumps(VALUE).encode() + b" " + other)


@pytest.mark.parametrize("content", [b"null", b'{"id": ' + b"[" * 9000 + b"]" * 9000 + b"}"])
def test_no_object_and_no_end_of_depth_are_errors(read, content):
    with pytest.raises(LlavaStfError):
        read(content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["records", "lines"])
def test_lines_of_wide_characters_are_refused_as_such(name, encoding, tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes("\n".join([json.dumps(VALUE)] * 2).encode(encoding))
    with pytest.raises(LlavaStfError, match=f"{encoding[:6].upper()}.*UTF-8"):
        READERS[name](path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_prompts_with_a_byte_order_mark_are_read(encoding, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("What?\nWhere?\n", encoding=encoding)
    assert read_prompts(path) == ["What?", "Where?"]


def test_an_option_that_is_given_twice_is_an_error(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\nstage: align\nseed: 2\n")
    with pytest.raises(LlavaStfError, match=r"'seed' stands there twice.*line 1"):
        read_yaml(path)
