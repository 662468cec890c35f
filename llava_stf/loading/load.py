"""Load a LLaVA or LLaVA-STF from wherever it is and in whatever format, ready to be asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from llava_stf.conversion.cache import converted
from llava_stf.conversion.locate import locate
from llava_stf.conversion.processors import (
    GENERATION,
    check_processor,
    read_generation,
    read_processor,
    tokenizers_template,
)
from llava_stf.conversion.sources import Format, Source, detect_format
from llava_stf.conversion.state import build_config, check_tensors, public_tensors
from llava_stf.errors import (
    CheckpointError,
    DeviceMemoryError,
    FusionError,
    KernelError,
    LlavaStfError,
    ModelNotFoundError,
    one_line,
)
from llava_stf.export.load import load_export, read_export_config, read_export_processor
from llava_stf.inference import LlavaStf
from llava_stf.inference.compiled import compile_generation
from llava_stf.io.exports import is_export
from llava_stf.io.json import read_json, without_byte_order_marks
from llava_stf.loading.bundled import BUNDLED, bundled_folder, is_bundled
from llava_stf.loading.lora import ADAPTER_CONFIG, LoraFolder, is_lora_folder, read_lora_folder
from llava_stf.loading.options import from_pretrained_options
from llava_stf.loading.precision import dtype_on_cpu, stored_dtype
from llava_stf.models.fusion.budget import resolve_windows
from llava_stf.models.fusion.build import use_kernels
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.tiles import has_tiles, takes_videos
from llava_stf.models.fusion.videos import frame_fields
from llava_stf.models.llava_stf.keys import HUGGING_FACE, is_unused
from llava_stf.models.llava_stf.settings import check_settings, settle_generation
from llava_stf.models.llava_stf.vocabulary import remember_tokenizer
from llava_stf.models.registry import CONFIGS, family_of_config
from llava_stf.reduction.apply import apply_stf

logger = logging.getLogger(__name__)


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
        vision_tokens: tokens per image. `None`: the checkpoint's own; a plain LLaVA is patched to a quarter. A count:
            the window of patches that gives it, or the default of a model that was trained for several. `"all"`: a
            plain LLaVA, untouched. A list: a plain LLaVA patched for all these counts, the first being the default.
        subfolder: folder inside the repository or local folder that holds the checkpoint.
        revision: branch, tag or commit of the hub repository; a local folder has none.
        device: default a GPU if there is one.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or a torch dtype; `"stored"` is that of the files. Default, also
            named `"auto"`: that of the files, but float32 on a CPU that has no instructions for it, if the memory has
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
    path = _locate(name_or_path, subfolder, revision)
    if is_export(path):
        return load_export(
            path, vision_tokens, device=device, dtype=dtype, quantization=quantization, init=init, kernels=kernels,
            attn_implementation=attn_implementation, vision_tower=vision_tower, compile=compile,
        )  # fmt: skip
    options = from_pretrained_options(device, dtype, quantization, attn_implementation)
    lora = read_lora_folder(path) if is_lora_folder(path) else None
    if lora is None:
        source = _loadable(path, vision_tower)
        folder, config = source.folder, _config(source)
    else:
        folder, config = lora.folder, lora.config
    window = _window(config, _default_tokens(name_or_path) if vision_tokens is None else vision_tokens)
    if isinstance(config, FusionConfig) and init != "pool":
        raise FusionError(f"init is for a plain LLaVA; {name_or_path} has a fused projector of its own.")
    processor = _read_processor(folder, config)
    if lora is None:
        model = _read_model(source, config, options)
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


def read_config(name_or_path: str | Path, *, vision_tower: str | Path | None = None) -> LlavaConfig:
    """The config of a model that `load_model` loads as a whole, without its weights.

    Raises:
        ExportError: it is an export, which has none.
        LlavaStfError: as `load_model`.
    """
    return _config(_loadable(_locate(name_or_path, None, None), vision_tower))


def read_config_to_ask(name_or_path: str | Path, *, vision_tower: str | Path | None = None) -> LlavaConfig:
    """The config of whatever `load_model` loads: also of an export, and of LoRA weights with their base.

    Raises:
        LlavaStfError: as `load_model`.
    """
    path = _locate(name_or_path, None, None)
    if is_export(path):
        return read_export_config(path)
    return read_lora_folder(path).config if is_lora_folder(path) else _config(_loadable(path, vision_tower))


def is_llava(name_or_path: str | Path) -> bool:
    """Whether a name or folder is a LLaVA's, plain or fused, and no language model or tower.

    Raises:
        LlavaStfError: as `load_model`.
    """
    if is_bundled(name_or_path):
        return True
    file = locate(name_or_path, weights=False) / "config.json"
    return file.is_file() and str(read_json(file).get("model_type")) in (*CONFIGS, "llava_llama")


def load_processor(
    name_or_path: str | Path = "tiny", *, vision_tokens: int | Literal["all"] | Sequence[int] | None = None
) -> LlavaProcessor:
    """The processor that `load_model` gives with the model, without loading the model.

    Raises:
        LlavaStfError: as `load_model`.
    """
    path = _locate(name_or_path, None, None)
    if is_export(path):
        return read_export_processor(path)
    if is_lora_folder(path):
        lora = read_lora_folder(path)
        folder, config = lora.folder, lora.config
    else:
        source = _loadable(path, None)
        folder, config = source.folder, _config(source)
    window = _window(config, _default_tokens(name_or_path) if vision_tokens is None else vision_tokens)
    processor = _read_processor(folder, config)
    if processor is None:
        raise CheckpointError(f"{folder} has no tokenizer, and nothing can be counted in tokens.")
    if window is not None:
        processor.fusion_window = window if isinstance(window, int) else window[0]
    return processor


def _config(source: Source) -> LlavaConfig:
    return build_config(source.config_file, CONFIGS[source.config["model_type"]], source.config)


def _default_tokens(name: str | Path) -> Literal["all"] | None:
    return BUNDLED[str(name)] if is_bundled(name) else None


def _locate(name: str | Path, subfolder: str | None, revision: str | None) -> Path:
    if not is_bundled(name):
        return locate(name, subfolder=subfolder, revision=revision)
    if subfolder is not None or revision is not None:
        raise LlavaStfError(f"'{name}' is a bundled model, which has neither subfolder nor revision.")
    if Path(name).exists():
        logger.warning("'%s' is the bundled model; for the folder of that name here give './%s'.", name, name)
    return bundled_folder(str(name))


def _loadable(path: Path, vision_tower: str | Path | None) -> Source:
    """The checkpoint in a format that transformers loads."""
    source = detect_format(path)
    if source.format is Format.ORIGINAL:
        return detect_format(converted(path, vision_tower))
    if vision_tower is not None:
        raise LlavaStfError(f"{source.folder} has its vision tower inside and takes no other (vision_tower).")
    if source.format is Format.ADAPTER:
        raise CheckpointError(
            f"{source.files[0]} holds a projector only; load its base model with init='{source.files[0]}', or convert "
            "both into one checkpoint."
        )
    if source.format is Format.LLAMA:
        raise CheckpointError(f"{source.folder} is a language model without a vision tower; expected a LLaVA.")
    return source


def _window(config: LlavaConfig, vision_tokens: int | Literal["all"] | Sequence[int] | None) -> int | list[int] | None:
    """Side of the windows to patch the model to, or `None` to leave it as it is; a fused config takes its default."""
    window = resolve_windows(config, vision_tokens)
    if isinstance(config, FusionConfig):
        assert isinstance(window, int)  # a list is refused above
        config.use_window(window)
        return None
    return None if window == 1 else window


def _read_model(source: Source, config: LlavaConfig, options: dict[str, Any]) -> LlavaForConditionalGeneration:
    """The model with all its weights and no others."""
    options = {**options, "dtype": _dtype(source, options)}
    check_settings(source.folder / GENERATION, read_generation(source.folder))  # transformers passes over a broken one
    if "quantization_config" not in source.config:
        _check_headers(source, config)
    try:
        with without_byte_order_marks(source.folder) as readable:
            model, report = AutoModelForImageTextToText.from_pretrained(
                readable, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"{source.folder} does not fit into the memory of {options['device_map']['']}: free some, load it with "
            f"quantization='4bit' or a smaller dtype, or take device='cpu' ({str(error).partition('.')[0]})."
        ) from error
    except Exception as error:  # as in build_config
        source.index()  # names the file if one is damaged
        raise CheckpointError(f"{source.folder} cannot be loaded: {one_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = sorted(key for key in map(str, report[problem]) if has_tiles(config) or not is_unused(key))
        if found:
            raise CheckpointError(
                f"{source.folder} does not fit its config.json: {len(found)} {problem.replace('_', ' ')}, the first is "
                f"{found[0]}."
            )
    return model


def _dtype(source: Source, options: dict[str, Any]) -> str | torch.dtype:
    """The dtype as transformers is told it, whose "auto" is that of the files."""
    if options["dtype"] not in ("auto", "stored"):
        return options["dtype"]
    quantized = "quantization_config" in options or "quantization_config" in source.config
    if options["dtype"] == "stored" or quantized or options["device_map"][""].type != "cpu":
        return "auto"
    shapes = (tensor.final_shape for tensor in source.index().values() if tensor.dtype.is_floating_point)
    return dtype_on_cpu(stored_dtype(source), sum(torch.Size(shape).numel() for shape in shapes))


def _check_headers(source: Source, config: LlavaConfig) -> None:
    """Name weights that do not fit before memory is taken for others, or before 4 bits hide their shapes."""
    parts = (config.vision_config.model_type, config.text_config.model_type)
    if source.format is not Format.TILES and parts == ("clip_vision_model", "llama"):
        check_tensors(source, config, public_tensors(source.index(), HUGGING_FACE))


def _read_processor(folder: Path, config: LlavaConfig) -> LlavaProcessor | None:
    """The processor, tokenising as in training also for a plain LLaVA; `None` where there is no tokenizer."""
    processor, _ = read_processor(folder, config)
    if processor is None:
        return None
    if processor.image_token_id != config.image_token_id:
        raise CheckpointError(
            f"{folder}: the tokenizer has {processor.image_token} as id {processor.image_token_id}, config.json "
            f"says {config.image_token_id}."
        )
    family = family_of_config(config)
    processor.chat_template = processor.chat_template or tokenizers_template(processor) or family.chat_template
    if takes_videos(config):
        fields = {"patch_size": config.vision_config.patch_size, **frame_fields(config)}
        vars(processor).update(fields)
        if not isinstance(config, FusionConfig):
            processor.fusion_window = 1
    elif type(processor) is family.plain_processor and config.vision_feature_select_strategy == "default":
        processor = family.processor(
            image_processor=processor.image_processor,
            tokenizer=processor.tokenizer,
            patch_size=config.vision_config.patch_size,
            chat_template=processor.chat_template,
            fusion_window=1,
        )
    if isinstance(config, FusionConfig):
        processor.fusion_window = config.fusion_window
    check_processor(folder, processor, config)
    return processor
