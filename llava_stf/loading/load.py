"""Load a LLaVA or LLaVA-STF from wherever it is and in whatever format, ready to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlavaForConditionalGeneration

from llava_stf.errors import FusionError, KernelError, ModelNotFoundError
from llava_stf.export.load import load_export
from llava_stf.inference import LlavaStf
from llava_stf.inference.compiled import compile_generation
from llava_stf.io.exports import is_export
from llava_stf.loading.checkpoint import config_of, loadable, locate_checkpoint, read_config, window_to_patch
from llava_stf.loading.lora import ADAPTER_CONFIG, LoraFolder, is_lora_folder, read_lora_folder
from llava_stf.loading.options import from_pretrained_options
from llava_stf.loading.processor import processor_of
from llava_stf.loading.weights import dtype_to_load, read_model
from llava_stf.models.fusion.build import use_kernels
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.llava_stf.settings import settle_generation
from llava_stf.models.llava_stf.vocabulary import remember_tokenizer
from llava_stf.reduction.apply import apply_stf


def load_model(
    name_or_path: str | Path = "tiny",
    *,
    vision_tokens: int | Literal["all"] | Sequence[int] | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: Literal["8bit", "4bit"] | None = None,
    attn_implementation: str | None = None,
    init: Literal["pool", "random"] | str | Path = "pool",
    vision_tower: str | Path | None = None,
    kernels: Literal["auto", "triton", "torch"] = "auto",
    compile: bool = False,
) -> LlavaStf:
    """Load a model and its processor.

    Args:
        name_or_path: `"tiny"` (the bundled LLaVA-STF) or `"tiny-full"` (its 100 % twin); else a folder or hub id of a
            LLaVA-STF, a plain LLaVA, or the authors' or haotian-liu's format. The latter two are converted once, into
            `$LLAVA_STF_CACHE` (default `~/.cache/llava_stf`). `Path("tiny")` and `"./tiny"` are a folder of that name,
            never the bundled model. Or a folder of LoRA weights that finetuning wrote: they
            are merged into their base, which it names, or stand beside 4-bit weights if it was trained on these. Or a
            folder that `llava-stf export` wrote, which OpenVINO or ONNX Runtime runs; the options below that choose
            weights, device or precision are not for it.
        vision_tokens: tokens per image. `None`: the checkpoint's own, all of a plain LLaVA that finetuning here wrote;
            any other plain LLaVA is patched to a quarter. A count:
            the window of patches that gives it, or the default of a model that was trained for several. `"all"`: a
            plain LLaVA, untouched. A list: a plain LLaVA patched for all these counts, the first being the default.
        subfolder: folder inside the repository or local folder that holds the checkpoint.
        revision: branch, tag or commit of the hub repository; a local folder has none.
        device: default a GPU if there is one.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or a torch dtype; `"stored"` is that of the files. Default, also
            named `"auto"`: that of the files, but float32 on a CPU that is slower at it, if the memory has
            room (said in the log). What is saved has the dtype that was loaded.
        quantization: `"8bit"` or `"4bit"` quantizes the language model with bitsandbytes and leaves the vision tower,
            the projector and the head as they are.
        attn_implementation: as in transformers: `"sdpa"`, `"eager"`, ...
        init: how a plain LLaVA's new projector starts, see `apply_stf`: `"pool"`, `"random"` or an adapter file.
        vision_tower: folder or hub id of the tower, for an original checkpoint that does not say it.
        kernels: what a fused projector runs on: `"triton"` (an error without a CUDA device), `"torch"`, or `"auto"`:
            what the environment variable `LLAVA_STF_KERNELS` says, else Triton where it can run. Said once in the log.
        compile: what `LlavaStf` and `Chat` generate is compiled with a static cache, on CUDA into CUDA graphs. The
            first request of a shape pays for its compilation: number of images for the tower and projector, batch size
            and prompt length (padded to a bucket) for the prefill, batch size and cache length for decoding. Caches are
            kept for later requests, `2 * layers * batch * kv_heads * head_dim * length` elements each, of the four
            shapes used last. The answers are those of the eager model up to rounding, and `model` itself, unpacked,
            saved or trained, is as without it. Beam search runs eagerly; where nothing can be compiled everything does.
            Either says so in one sentence in the log.

    Raises:
        ModelNotFoundError: no such model here or on the hub, or the hub cannot be reached.
        CheckpointError: damaged or incomplete weights, or no LLaVA.
        FusionError: the model cannot be had at that number of vision tokens.
        KernelError: Triton kernels were asked for where they cannot run.
        MissingDependencyError: quantization without bitsandbytes, or `flash_attention_2` without flash-attn.
        DeviceMemoryError: the device has no room for the model.
        ExportError: an exported folder is not whole or of another version, or an option is not for one.
        LlavaStfError: an option has no such value.
    """
    path = locate_checkpoint(name_or_path, subfolder, revision)
    if is_export(path):
        model, processor = load_export(
            path, vision_tokens, device=device, dtype=dtype, quantization=quantization, init=init, kernels=kernels,
            attn_implementation=attn_implementation, vision_tower=vision_tower, compile=compile,
        )  # fmt: skip
        return LlavaStf(model, processor)
    options = from_pretrained_options(device, dtype, quantization, attn_implementation)
    lora = read_lora_folder(path) if is_lora_folder(path) else None
    if lora is None:
        source = loadable(path, vision_tower)
        folder, config = source.folder, config_of(source)
    else:
        folder, config = lora.folder, lora.config
    window = window_to_patch(config, name_or_path, vision_tokens)
    if isinstance(config, FusionConfig) and init != "pool":
        raise FusionError(f"init is for a plain LLaVA; {name_or_path} has a fused projector of its own.")
    processor = processor_of(folder, config)
    if lora is None:
        model = read_model(source, config, options)
    else:
        model = load_trained(
            lora, quantization=quantization, device=device, dtype=dtype, attn_implementation=attn_implementation
        )
    if window is not None:
        apply_stf(model, processor, window=window, init=init, kernels=kernels)
    elif isinstance(config, FusionConfig):
        model.config.use_window(config.fusion_window)
        use_kernels(model.model.multi_modal_projector, kernels)
    elif kernels == "triton":
        raise KernelError("kernels='triton' is for a fused projector, and a plain LLaVA at all its tokens has none.")
    settle_generation(model, None if processor is None else processor.tokenizer)
    remember_tokenizer(model, processor)
    model.eval()
    return LlavaStf(model, processor, compile_generation(model) if compile else None)


def device_and_dtype(
    name_or_path: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    vision_tower: str | Path | None = None,
) -> tuple[str, str]:
    """Where and in which precision `load_model` would have a model compute, as two options of it; reads no weights.

    Args:
        name_or_path: of `load_model`, and no export, as the others.
        device: default a GPU if there is one.
        dtype: default as the machine is quick; where that is the files' the answer may be `"stored"`.
        quantization: of the language model.
        vision_tower: for a checkpoint that has none inside.

    Raises:
        LlavaStfError: as `load_model`.
    """
    path = locate_checkpoint(name_or_path)
    if is_lora_folder(path):
        lora = read_lora_folder(path)
        bits = quantization or ("4bit" if lora.four_bit else None)
        return device_and_dtype(lora.base, device=device, dtype=dtype, quantization=bits)
    options = from_pretrained_options(device, dtype, quantization, None)
    chosen = dtype_to_load(loadable(path, vision_tower), options)
    return str(options["device_map"][""]), "stored" if chosen == "auto" else str(chosen).removeprefix("torch.")


def load_trained(
    lora: LoraFolder, *, quantization: str | None, dequantize: bool = False, **options: Any
) -> LlavaForConditionalGeneration:
    """The trained model of a folder of LoRA weights, from its base and these weights.

    Args:
        lora: the folder.
        quantization: of the base; `None` is that of the training run.
        dequantize: bring quantized weights back to full precision first.
        **options: of `load_model`, for the base.

    Raises:
        ModelNotFoundError: the base is not there.
        CheckpointError: the base does not fit, or the files here are damaged or do not fit it.
    """
    try:
        base_config = read_config(lora.base)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{lora.folder} holds LoRA weights for the base model '{lora.base}', which is not there; restore it "
            f"or name its new place as base_model_name_or_path in {ADAPTER_CONFIG}."
        ) from error
    lora.check_base(base_config)
    bits: Any = quantization or ("4bit" if lora.four_bit else None)
    vision_tokens: Any = None if isinstance(base_config, FusionConfig) else "all"
    model, _ = load_model(lora.base, vision_tokens=vision_tokens, quantization=bits, **options)
    if bits is not None and dequantize:
        model, bits = model.dequantize(), None
    return lora.apply_to(model, bits)
