"""What an export is written and run with, which comes with the extras `openvino` and `onnx`."""

from __future__ import annotations

from importlib.util import find_spec

from llava_stf.errors import MissingDependencyError

_RUN = {"openvino": ("openvino",), "onnx": ("onnxruntime",)}
_WRITE = {"openvino": ("openvino", "openvino_tokenizers", "nncf"), "onnx": ("onnx", "onnxscript", "onnxruntime")}


def require(format: str, *, writing: bool = False) -> None:
    """Check that what runs, or writes, an export is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    missing = [name for name in (_WRITE if writing else _RUN)[format] if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"An export for {format} needs {' and '.join(missing)}: pip install 'llava-stf[{format}]'"
        )
