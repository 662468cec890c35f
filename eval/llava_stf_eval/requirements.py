"""lmms-eval, where it is installed: found without being imported, which takes seconds and changes loggers and more."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from llava_stf.errors import MissingDependencyError


def lmms_eval_folder() -> Path:
    """The package's folder.

    Raises:
        MissingDependencyError: it is not installed.
    """
    spec = find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            'Benchmarks run through lmms-eval, which is not installed: pip install "llava-stf[eval]" and then '
            "pip install --no-deps lmms-eval==0.7.3."
        )
    return Path(spec.submodule_search_locations[0])


def lmms_eval_file(path: str) -> ModuleType:
    """One file of it as a module of its own, for a file that needs nothing of the package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    file = lmms_eval_folder() / path
    spec = spec_from_file_location(f"lmms_eval_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lmms_eval_module(name: str) -> ModuleType:
    """The module `lmms_eval.<name>`, imported with the whole package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    lmms_eval_folder()
    return import_module(f"lmms_eval.{name}")
