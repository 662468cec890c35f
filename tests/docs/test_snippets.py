"""Every block of code in README.md and the guides runs as it stands and prints what it is said to print.

A page is read from top to bottom in one fresh folder: its Python blocks share their names, as a reader's session does,
and its shell blocks run in bash. A `text` block right behind a block is its output. What cannot run here has
the comment `<!-- not run: REASON -->` above it, and only its Python syntax is checked.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "eval/README.md", "kernels/README.md", "CONTRIBUTING.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\S*)\n(?P<code>.*?)^```\n", re.DOTALL | re.MULTILINE
)
# What is shown and not typed in.
SHOWN = {"text", "toml", "json", "yaml", "bibtex"}


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    reason: str | None
    output: str | None


def blocks(page: str) -> list[Block]:
    """The blocks of a page that a reader would run, each with the output that the page says it has."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    end = None
    for fence in FENCE.finditer(text):
        language, code, reason = fence["language"], fence["code"], fence["reason"]
        line = text.count("\n", 0, fence.start("code"))
        if language == "text" and end is not None and not text[end : fence.start()].strip():
            found[-1] = Block(found[-1].line, found[-1].language, found[-1].code, found[-1].reason, code)
        elif language in SHOWN:
            assert reason is None, f"{page}:{line}: a block of {language} is not run anyway."
        else:
            assert language in {"python", "shell"}, f"{page}:{line}: a block is python, shell or one of {SHOWN}."
            found.append(Block(line, language, code, reason, None))
        end = fence.end() if language not in SHOWN else None
    assert text.count("\n```") == 2 * len(list(FENCE.finditer(text))), f"{page}: a fence that the pattern does not see."
    return found


BLOCKS = {page: blocks(page) for page in PAGES}
RUN = [page for page, found in BLOCKS.items() if any(block.reason is None for block in found)]


def run_python(block: Block, page: str, names: dict[str, object]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile("\n" * block.line + block.code, page, "exec"), names)
    return output.getvalue()


def run_shell(block: Block, folder: Path) -> str:
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(str(ROOT / package) for package in ("", "kernels", "eval")),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("page", RUN)
def test_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")  # the commands are given in a checkout
    names: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        if block.reason is None:
            found = run_python(block, page, names) if block.language == "python" else run_shell(block, tmp_path)
            if block.output is not None:
                assert found == block.output, f"{page}:{block.line}"


@pytest.mark.parametrize("page", [page for page, found in BLOCKS.items() if any(b.language == "python" for b in found)])
def test_python_that_is_not_run_compiles(page):
    for block in BLOCKS[page]:
        if block.language == "python":
            compile("\n" * block.line + block.code, page, "exec")
