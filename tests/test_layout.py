"""The layout's promises: folders that are no packages, imports that go one way, and a light `import llava_stf`."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "llava_stf": ROOT / "llava_stf",
    "llava_stf_kernels": ROOT / "kernels" / "llava_stf_kernels",
    "llava_stf_eval": ROOT / "eval" / "llava_stf_eval",
}
BARE_CHECKOUT = os.pathsep.join(str(ROOT / folder) for folder in ("", "kernels", "eval"))


def run_python(code: str, *, search_path: str) -> str:
    """Standard output of `code` in a fresh interpreter started in the repository root."""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": search_path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported_modules(source: Path) -> set[str]:
    """What a file imports absolutely, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def imported_packages(source: Path) -> set[str]:
    """Top-level names of what a file imports."""
    return {name.partition(".")[0] for name in imported_modules(source)}


@pytest.mark.parametrize("folder", ["kernels", "eval"])
def test_folder_of_packages_is_no_package(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_installed_kernels_library_wins_over_our_folder(tmp_path: Path) -> None:
    # transformers imports Hugging Face's `kernels` when it is installed; ours hiding it breaks the import of LLaVA.
    library = tmp_path / "kernels"
    library.mkdir()
    (library / "__init__.py").write_text("def get_kernel(): ...\n")
    code = "import kernels; kernels.get_kernel; print(kernels.__file__)"
    found = run_python(code, search_path=os.pathsep.join([BARE_CHECKOUT, str(tmp_path)]))
    assert Path(found) == library / "__init__.py"


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("llava_stf_kernels", {"llava_stf", "llava_stf_eval"}),
        ("llava_stf", {"llava_stf_eval"}),
    ],
)
def test_imports_go_one_way(package: str, forbidden: set[str]) -> None:
    sources = sorted(PACKAGES[package].rglob("*.py"))
    assert sources
    offenders = {str(s.relative_to(ROOT)): found for s in sources if (found := imported_packages(s) & forbidden)}
    assert not offenders


def test_folders_import_those_of_the_lines_above_them() -> None:
    lines = re.findall(r"^(\d)\. (`.*)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    floors = {
        name.removesuffix(".py"): int(line) for line, names in lines for name in re.findall(r"`(\w+(?:\.py)?)`", names)
    }
    folders = {path.stem for path in PACKAGES["llava_stf"].iterdir() if path.name[0] != "_"} - {"assets", "py"}
    assert floors.keys() == folders
    offenders = set()
    for folder, floor in floors.items():
        for source in (PACKAGES["llava_stf"] / folder).rglob("*.py"):
            imported = {name.split(".")[1] for name in imported_modules(source) if name.startswith("llava_stf.")}
            offenders |= {
                (str(source.relative_to(ROOT)), name) for name in imported - {folder} if floors[name] >= floor
            }
    assert not offenders


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_from_a_bare_checkout(package: str) -> None:
    found = run_python(f"import {package}; print({package}.__file__)", search_path=BARE_CHECKOUT)
    assert Path(found) == PACKAGES[package] / "__init__.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_marked_as_typed(package: str) -> None:
    assert (PACKAGES[package] / "py.typed").is_file()


def test_import_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, llava_stf; print(*sorted({'torch', 'transformers'} & sys.modules.keys()))"
    assert run_python(code, search_path=BARE_CHECKOUT) == ""


@pytest.mark.parametrize("first", ["llava_stf.cli", "llava_stf_eval.cli"])
def test_commands_import_in_either_order_and_without_torch(first: str) -> None:
    code = f"import sys, {first}, llava_stf.cli, llava_stf_eval.cli; print(*sorted({{'torch'}} & sys.modules.keys()))"
    assert run_python(code, search_path=BARE_CHECKOUT) == ""
