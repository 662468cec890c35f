"""Brings the documents that stand outside docs/ into the site, and makes links between all of them work there.

On a code host a link is a path in the repository (`docs/load.md`, `../kernels/README.md`); in the site the README is
the home page and docs/ is the root.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Path in the repository -> path in the site.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CITATION.cff": "CITATION.cff",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "kernels/README.md": "kernels/README.md",
    "eval/README.md": "eval/README.md",
    "tests/golden/README.md": "tests/golden/README.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the documents that stand elsewhere."""
    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turns links that are paths in the repository into paths in the site."""
    here = page.file.src_uri
    origin = next((source for source, target in OUTSIDE.items() if target == here), f"docs/{here}")

    def in_site(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1]))
        target = OUTSIDE.get(path, path.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return LINK.sub(in_site, markdown)
