"""Every option that a page or a script gives to a command of this package is one that the command has.

What is not run (a block that needs a GPU, a script of hours) would otherwise keep an option under its former name.
"""

import contextlib
import io
import re
import runpy
import shlex
import sys
import warnings
from functools import cache

import pytest
import typer

from llava_stf.cli import _add_groups, app
from tests.docs.test_snippets import BLOCKS, ROOT

SCRIPTS = sorted(str(script.relative_to(ROOT)) for script in (ROOT / "scripts").glob("*.sh"))
# What passes options that it does not know on to another program.
PASSED_ON = {"llava_stf_eval.tables.encoders": "llava_stf.encoders.pretrain"}
STARTS = re.compile(r"llava-stf (?P<command>[a-z].*)|-m (?P<module>llava_stf[\w.]*)(?P<rest>.*)")


def shell_texts(name: str) -> list[str]:
    if name in SCRIPTS:
        return [(ROOT / name).read_text(encoding="utf-8")]
    return [block.code for block in BLOCKS[name] if block.language == "shell"]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Program and arguments of each command of ours in a shell text, up to a pipe, a redirection or a bare `--`."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        match = STARTS.search(re.sub(r"(^|\s)#.*", "", line))
        if match is None:
            continue
        program = match["module"] or "llava-stf"
        words = re.split(r"\s(?:[|>;&]|\d>|-- )", match["command"] or match["rest"])[0]
        found.append((program, shlex.split(words.replace("'", '"').replace('"', " "))))
    return found


@cache
def options_of_command(*names: str) -> frozenset[str]:
    """Of `llava-stf NAME...`; names that are no subcommands are arguments."""
    _add_groups()
    command = typer.main.get_command(app)
    for name in names:
        if name not in getattr(command, "commands", {}):
            break
        command = command.commands[name]
    return frozenset(option for parameter in command.params for option in parameter.opts + parameter.secondary_opts)


@cache
def options_of_module(module: str, *arguments: str) -> frozenset[str]:
    """Of `python -m MODULE ARGUMENT...`, by what its help prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy's, about a module that is imported already
        patch.setattr(sys, "argv", [module, *arguments, "--help"])
        patch.setenv("COLUMNS", "200")
        with contextlib.suppress(SystemExit):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    return frozenset(re.findall(r"--[\w-]+", printed.getvalue()))


@pytest.mark.parametrize("name", [page for page in [*BLOCKS, *SCRIPTS] if any(map(commands, shell_texts(page)))])
def test_options_are_those_of_the_commands(name):
    for text in shell_texts(name):
        for program, words in commands(text):
            before = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
            known = options_of_command(*before) if program == "llava-stf" else options_of_module(program, *before)
            known |= options_of_module(PASSED_ON[program]) if program in PASSED_ON else set()
            given = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
            assert given <= known | {"--help"}, f"{program} {' '.join(words)}"
