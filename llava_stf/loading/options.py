"""What transformers is told when a model is loaded: device, precision, quantization of the language model."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from llava_stf.errors import LlavaStfError, MissingDependencyError

_DTYPES = ("float32", "bfloat16", "float16", "stored", "auto")
# Only the language model is quantized; a list of names replaces the library's default, which spares the head alone.
_UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "vision_tower", "multi_modal_projector", "lm_head"]


def from_pretrained_options(
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    quantization: str | None,
    attn_implementation: str | None,
) -> dict[str, Any]:
    """The keywords of `from_pretrained` for those of `load_model`; "auto" and "stored" wait until the files are known.

    Raises:
        LlavaStfError: a value that does not exist or a device that is not here.
        MissingDependencyError: quantization without bitsandbytes.
    """
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise LlavaStfError(
            f"device must be one that torch knows, such as 'cpu' or 'cuda:1', found '{device}'."
        ) from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise LlavaStfError(f"device is '{device}', but torch sees no GPU here; take 'cpu'.")
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise LlavaStfError(f"dtype must be one of {', '.join(_DTYPES)}, found '{dtype}'.")
    options: dict[str, Any] = {"device_map": {"": target}, "dtype": name}
    if attn_implementation is not None:
        require_attention(attn_implementation)
        options["attn_implementation"] = attn_implementation
    if quantization is not None:
        options["quantization_config"] = _quantization(quantization, name)
    return options


def require_attention(implementation: str) -> None:
    """Raise `MissingDependencyError` where the package of an attention implementation is not installed."""
    if implementation == "flash_attention_2" and find_spec("flash_attn") is None:
        raise MissingDependencyError(
            "attn_implementation flash_attention_2 needs the package flash_attn: "
            "pip install flash-attn --no-build-isolation"
        )


def _quantization(bits: str, dtype: str) -> BitsAndBytesConfig:
    if bits not in ("8bit", "4bit"):
        raise LlavaStfError(f"quantization must be '8bit' or '4bit', found '{bits}'.")
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError("quantization needs bitsandbytes: pip install 'llava-stf[quantization]'")
    if bits == "8bit":
        # It warns at every single multiplication that the products are computed in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="bfloat16" if dtype in ("auto", "stored") else dtype,
        llm_int8_skip_modules=_UNQUANTIZED,
    )
