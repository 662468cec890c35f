"""The code of a fused model as files beside its weights, for readers without this package.

transformers runs such files with `trust_remote_code=True`. They are this package's own modules, as many as the model,
its config and its processor need, laid side by side under their last names; of the kernels they have plain torch alone.
"""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import llava_stf_kernels
from llava_stf.models.auto_classes import MODEL_TYPES
from llava_stf_kernels import windows

# By Auto class, the file's and the class's name before and behind what the model type gives them.
_CLASSES = {
    "AutoConfig": ("configuration", "Config"),
    "AutoModel": ("modeling", "Model"),
    "AutoModelForImageTextToText": ("modeling", "ForConditionalGeneration"),
    "AutoProcessor": ("processing", "Processor"),
}
_KERNELS = "llava_stf_kernels"
_IMPORT = re.compile(r"^( *)from ((?:llava_stf|llava_stf_kernels)\b[\w.]*) import ", re.MULTILINE)
_PLAIN = (
    windows.grid_side,
    llava_stf_kernels.gather_windows,
    llava_stf_kernels.naive_fuse_blocks,
    llava_stf_kernels.naive_fuse_windows,
    llava_stf_kernels.naive_place_tokens,
    llava_stf_kernels.naive_pool_tokens,
    llava_stf_kernels.check_count,
    llava_stf_kernels.BackendError,
)
_PLAIN_HEAD = '''"""The operations of llava_stf_kernels in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

'''
_PLAIN_TAIL = """

def check_backend(backend, device, dtype):
    if backend == "triton":
        raise BackendError("Triton kernels come with the package llava_stf; take 'auto' or 'torch'.")


def fuse_blocks(states, weight, bias=None, *, backend=None):
    return naive_fuse_blocks(states, weight, bias)


def fuse_windows(x, weight, bias=None, window=2, *, backend=None):
    return naive_fuse_windows(x, weight, bias, window)


def place_tokens(embeddings, tokens, mask, *, backend=None):
    check_count(mask, len(tokens))
    return naive_place_tokens(embeddings, tokens, mask)


def pool_tokens(x, window, *, backend=None):
    return naive_pool_tokens(x, window)
"""


def auto_map(kind: type) -> dict[str, str]:
    """What a config says of the classes in the files: those of the model that `kind` belongs to."""
    model_type = _model_type(kind)
    return {auto: f"{file}_{model_type}.{MODEL_TYPES[model_type]}{name}" for auto, (file, name) in _CLASSES.items()}


def write_code(folder: Path, kind: type) -> None:
    """Write the modules into an existing folder.

    Args:
        folder: of a checkpoint; files of the same names are replaced.
        kind: class of the model or of its processor.
    """
    for name, text in carried_files(kind).items():
        (folder / name).write_text(text, encoding="utf-8")


def carried_files(kind: type) -> dict[str, str]:
    """File names and contents of the modules."""
    package, model_type = kind.__module__.rpartition(".")[0], _model_type(kind)
    waiting, modules = [f"{package}.{file}_{model_type}" for file, _ in set(_CLASSES.values())], dict[str, str]()
    while waiting:
        module = waiting.pop()
        if module not in modules:
            modules[module] = _source(module)
            waiting += [match[2] for match in _IMPORT.finditer(modules[module])]
    return {f"{_file(module)}.py": _IMPORT.sub(_beside, text) for module, text in modules.items()}


def _model_type(kind: type) -> str:
    """As the last part of the module's name has it: `modeling_llava_stf` holds `llava_stf`."""
    return _file(kind.__module__).partition("_")[2]


def _source(module: str) -> str:
    if module == _KERNELS:
        return _PLAIN_HEAD + "\n\n".join(inspect.getsource(part) for part in _PLAIN) + _PLAIN_TAIL
    spec = find_spec(module)
    assert spec is not None  # a module of this package imports it
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _beside(match: re.Match[str]) -> str:
    return f"{match[1]}from .{_file(match[2])} import "


def _file(module: str) -> str:
    """The last name alone, which no two of the modules share."""
    return module.rpartition(".")[2]
