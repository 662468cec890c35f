"""Numbers of a module's command line."""

import argparse

import pytest

from llava_stf.io.arguments import count, seed


@pytest.mark.parametrize(("kind", "given"), [(count, "1"), (count, "144"), (seed, "0"), (seed, str(2**32 - 1))])
def test_a_number_that_can_be_is_read(kind, given):
    assert kind(given) == int(given)


@pytest.mark.parametrize(
    ("kind", "given"),
    [(count, "0"), (count, "-3"), (count, "1.5"), (count, "many"), (seed, "-1"), (seed, str(2**32)), (seed, "")],
)
def test_any_other_is_a_sentence_and_exit_code_2(capsys, kind, given):
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=kind)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([f"--number={given}"])
    assert stop.value.code == 2
    assert f"argument --number: expected a whole number of at least {int(kind is count)}" in capsys.readouterr().err
