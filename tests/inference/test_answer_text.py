"""The text of an answer, piece by piece, is the text of all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_stf.inference.answer_text import AnswerText, Decoder
from llava_stf.loading.testing import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DECODE = Decoder(TOKENIZER, template="<image>")
IDS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60)


def pieces(ids, stops=()):
    """What each id lets out, with what is left at the end, and whether a stop string ended it."""
    text, out = AnswerText(DECODE, stops), []
    for token in ids:
        fresh, stopped = text.add(token)
        out.append(fresh)
        if stopped:
            return out, True
    return [*out, text.finish()], False


def encode(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@given(IDS)
def test_the_pieces_join_to_the_stripped_text(ids):
    assert "".join(pieces(ids)[0]) == TOKENIZER.decode(ids, skip_special_tokens=True).strip()


@given(IDS, st.lists(st.text("ab\n .", min_size=1, max_size=3), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_given_out(ids, stops):
    out, stopped = pieces(ids, stops)
    assert not any(stop in "".join(out) for stop in stops)
    assert stopped or "".join(out) == TOKENIZER.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("text", ["a 😀 b", "日本語", "é\n\nè", "  spaces  inside  "])
def test_characters_of_several_bytes_come_whole(text):
    out, _ = pieces([token for byte in text.encode() for token in [TOKENIZER.convert_tokens_to_ids(f"<0x{byte:02X}>")]])
    assert "".join(out) == text.strip()
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(out)


def test_text_comes_as_early_as_it_is_sure():
    out, _ = pieces(encode("one two"))
    assert sum(map(bool, out)) > 3
    assert not any(piece.endswith(" ") for piece in out)  # a space may be the answer's last character


def test_the_first_stop_string_ends_the_text_and_what_may_become_one_waits():
    out, stopped = pieces(encode("one. Two three"), [". Tw", "three"])
    assert stopped
    assert "".join(out) == "one"
    out, stopped = pieces(encode("one. Tea"), [". Tw"])
    assert not stopped
    assert "".join(out) == "one. Tea"


def test_a_stop_string_of_a_single_byte_is_seen_at_once():
    newline = TOKENIZER.convert_tokens_to_ids("<0x0A>")
    text = AnswerText(DECODE, ["\n"])
    assert [text.add(token) for token in [*encode("ab"), newline]][-1][1]
