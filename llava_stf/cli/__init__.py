"""The command line: `llava-stf demo | ask | chat | batch | serve | show | convert | export | ...`.

Exit codes: 0 done, 2 the user's error in one sentence on stderr, 1 an error of ours, 130 and 143 stopped by SIGINT and
SIGTERM. Only typer is imported here; what a command needs is imported when it runs, so that `--help` is instant.
"""

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llava_stf.cli.ask import ask
from llava_stf.cli.assemble import assemble
from llava_stf.cli.batch import batch
from llava_stf.cli.card import card
from llava_stf.cli.chat import chat
from llava_stf.cli.convert import convert
from llava_stf.cli.data import data
from llava_stf.cli.demo import demo
from llava_stf.cli.encoders import encoders
from llava_stf.cli.export import export
from llava_stf.cli.groups import command_groups
from llava_stf.cli.merge import merge
from llava_stf.cli.serve import serve
from llava_stf.cli.show import show
from llava_stf.cli.threads import bound_threads
from llava_stf.errors import LlavaStfError
from llava_stf.io.requirements import __version__
from llava_stf.io.signals import report, terminable

# Newer typer brings its own click, older typer needs click; its public error leads to the base class in both.
ClickError: type[Any] = typer.BadParameter.__bases__[0].__bases__[0]


class _Commands(TyperGroup):
    """Commands that a signal ends with our sentence; typer would make a mere exit code of it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise typer.Exit(report(stop)) from stop


app = typer.Typer(
    cls=_Commands,
    name="llava-stf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Try: [bold]llava-stf demo[/]  |  [bold]llava-stf ask photo.jpg 'What is this?' "
    "--model llava-hf/llava-1.5-7b-hf[/]",
)
for command in (demo, ask, chat, batch, serve, show, convert, export, assemble, merge, card):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(encoders, name="encoders")


@cache
def _add_groups() -> None:
    """Not at import: what is added imports from this package."""
    for group in command_groups():
        app.add_typer(group.load(), name=group.name)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"llava-stf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """LLaVA on a quarter of its vision tokens: ask about images, compare with 100 %, convert checkpoints."""
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.simplefilter("ignore")
        # PEFT imports it wherever it is installed, and without `kernels` it then warns of multiplications in 4 bits.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; `--debug` may stand anywhere."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = ["--debug"] * debug + [argument for argument in given if argument != "--debug"]
    _take_any_text()
    bound_threads()
    try:
        with terminable():
            _add_groups()
            code = app(given, prog_name="llava-stf", standalone_mode=False) or 0
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:  # before a command has begun, or when it has ended
        return report(stop)
    except BrokenPipeError:  # the reader, `head` for instance, has gone; keep Python's last flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except LlavaStfError as error:
        return _report(error, str(error), debug, code=2)
    except ClickError as error:
        if not given or given == ["--debug"]:
            error.show()
            return 2
        context = getattr(error, "ctx", None)
        command = "llava-stf" if context is None else context.command_path
        return _report(error, f"{error.format_message().rstrip('.')}; see {command} --help.", debug, code=2)
    except Exception as error:  # noqa: BLE001 - the last stop: one line for the user, all of it with --debug
        hint = f"internal error: {type(error).__name__}: {error} (llava-stf --debug shows where)"
        return _report(error, hint, debug, code=1)


def _take_any_text() -> None:
    """Keep a terminal or pipe in another encoding than the text's from ending a command.

    What is no text on stdin becomes lone surrogates, which are refused in a sentence, and what stdout cannot show is
    shown as an escape.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _report(error: Exception, sentence: str, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exception(error)
    print(" ".join(sentence.split()), file=sys.stderr)
    return code
