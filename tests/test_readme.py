"""The README's Python snippets run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
SNIPPET = re.compile(r"(<!-- needs (?:the hub|a server) -->\n)?```python\n(.*?)```", re.DOTALL)
SNIPPETS = SNIPPET.findall(README.read_text(encoding="utf-8"))


@pytest.mark.parametrize("snippet", [code for needs, code in SNIPPETS if not needs])
def test_snippet_runs(snippet, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("snippet", [code for _, code in SNIPPETS])
def test_snippet_compiles(snippet):
    compile(snippet, "README.md", "exec")
