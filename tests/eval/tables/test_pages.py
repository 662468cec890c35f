"""The tables of README.md and the guides are those of the results beside them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava_stf.errors import DataError, LlavaStfError
from llava_stf_eval.tables.pages import END, TABLES, insert, write_pages

ROOT = Path(__file__).resolve().parents[3]


def test_every_table_is_what_its_results_say():
    assert write_pages(ROOT, check=True) == []


@pytest.fixture
def clone(tmp_path):
    for page in TABLES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / page, tmp_path / page)
    for file in (ROOT / "docs").rglob("*.json"):
        (tmp_path / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tmp_path / file.relative_to(ROOT))
    return tmp_path


def test_a_table_that_is_out_of_date_is_named_and_written_again(clone):
    page = clone / "docs" / "training.md"
    right = page.read_text()
    page.write_text(right.replace("| CIFAR pictures | ", "| CIFAR pictures | 1"))
    command = [sys.executable, "-m", "llava_stf_eval.tables", str(clone)]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (1, "docs/training.md\n")
    assert page.read_text() != right
    assert write_pages(clone) == ["docs/training.md"]
    assert page.read_text() == right
    assert write_pages(clone) == []


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    with pytest.raises(LlavaStfError, match="is no clone of this project, it has no README"):
        write_pages(tmp_path)


def test_a_table_stands_between_its_own_markers():
    start = "<!-- table one -->"
    page = f"# Title\n{start}\nold\n{END}\nbetween\n<!-- table two -->\nother\n{END}\nrest\n"
    assert insert(page, "one", "| a |\n") == page.replace("old", "| a |")
    assert insert(page, "two", "| b |") == page.replace("other", "| b |")
    for broken in ("no markers", f"{END}{start}", f"{start}{END}{start}"):
        with pytest.raises(DataError, match="Expected <!-- table one -->"):
            insert(broken, "one", "")
