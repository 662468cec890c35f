"""Modules that are run as commands: exit codes and sentences."""

import pytest

from llava_stf.errors import DataError
from llava_stf.io.command import run


def test_an_error_of_the_users_is_a_sentence(capsys):
    def main():
        raise DataError("There are no images.")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: There are no images.\n"


def test_a_signal_and_success_have_their_codes(capsys):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(stopped)
    assert stop.value.code == 130
    assert capsys.readouterr().err.startswith("Stopped by SIGINT")
    with pytest.raises(SystemExit) as stop:
        run(lambda: None)
    assert stop.value.code == 0


def test_a_fault_of_the_package_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
