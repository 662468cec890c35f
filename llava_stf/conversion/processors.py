"""Tokenizer, image processor and generation settings of a converted checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.image_processing_utils import BaseImageProcessor

from llava_stf.errors import CheckpointError, one_line
from llava_stf.io.json import read_json, without_byte_order_marks
from llava_stf.models.fusion.budget import num_image_tokens
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.fusion.tiles import takes_videos
from llava_stf.models.llava_stf.chunks import IMAGE_TOKEN
from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE
from llava_stf.models.llava_stf.vocabulary import ensure_pad_token
from llava_stf.models.registry import family_of_config
from llava_stf.models.vision.layers import select_strategy

GENERATION = "generation_config.json"
PAD_TOKEN = "<pad>"
UNUSED_TOKEN = "<unused_{}>"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_PREPROCESSOR_FIELDS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_convert_rgb"),
)


def tokenizer_folder(folder: Path) -> Path | None:
    """Where a checkpoint's tokenizer files are: beside the weights or in `tokenizer/`; `None` if there are none."""
    places = (folder, folder / "tokenizer")
    return next((place for place in places if any((place / file).is_file() for file in _TOKENIZER_FILES)), None)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        CheckpointError: its files cannot be read.
    """
    try:
        # With a config of its own it does not look into the folder's config.json, whose model type it does not know.
        with without_byte_order_marks(folder) as readable:
            return AutoTokenizer.from_pretrained(readable, config=LlamaConfig())
    except Exception as error:  # three libraries read these files, each with its own exceptions
        raise CheckpointError(f"{folder}: the tokenizer files cannot be read: {one_line(error)}") from error


def add_placeholders(
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    max_length: int | None,
    names: Sequence[str] = (IMAGE_TOKEN, PAD_TOKEN),
) -> PreTrainedTokenizerBase:
    """The tokenizer with `<image>` and `<pad>`, or other `names`.

    Each stands where it is or from id `vocab_size` on; padding is on the left.

    The result is a plain fast tokenizer: `LlamaTokenizer` forgets its `legacy` flag when it is saved and would split
    the text behind `</s>` otherwise afterwards. A vocabulary smaller than the model's is filled up with unused tokens.

    Raises:
        CheckpointError: the vocabulary is larger than the model's.
    """
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) > vocab_size:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: expected a tokenizer of at most {vocab_size} tokens, found {len(vocabulary)}."
        )
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    converted = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=max_length or tokenizer.model_max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=tokenizer.chat_template,
        **special,
    )
    unused = [UNUSED_TOKEN.format(number) for number in range(len(vocabulary), vocab_size)]
    added = [*unused, *(name for name in names if name not in vocabulary)]
    converted.add_tokens([AddedToken(name, special=True, normalized=False) for name in added], special_tokens=True)
    converted.pad_token = PAD_TOKEN
    return converted


def build_processor(
    config: LlavaConfig,
    image_processor: BaseImageProcessor,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    default: str = CHAT_TEMPLATE,
) -> LlavaProcessor:
    """The processor of a model with this config.

    Args:
        config: of the model.
        image_processor: of the tower.
        tokenizer: with placeholders.
        template: chat template; by default the tokenizer's, if it has places for images, else `default`.
        default: the authors' v1, or what a model on another language model was trained on.
    """
    family = family_of_config(config)
    if takes_videos(config):
        # That of transformers cannot be built without torchvision, and this one's files are read as if they were its.
        processor = family.processor(
            image_processor, tokenizer, config.vision_config.patch_size, template,
            vision_aspect_ratio=config.vision_aspect_ratio, fusion_window=1,
        )  # fmt: skip
    else:
        common: dict[str, Any] = {
            "image_processor": image_processor,
            "tokenizer": tokenizer,
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": select_strategy(config),
            "num_additional_image_tokens": 1,
            "chat_template": template,
        }
        fused = isinstance(config, FusionConfig)
        if fused:
            common["fusion_window"] = config.fusion_window
        processor = (family.processor if fused else family.plain_processor)(**common)
    processor.chat_template = template or tokenizers_template(processor) or default
    return processor


def tokenizers_template(processor: LlavaProcessor) -> str | None:
    """The chat template in the tokenizer's files, if it has places for images, as those for text alone have not."""
    template = processor.tokenizer.chat_template
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    try:
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], chat_template=template)
    except (TemplateError, ValueError, TypeError):
        return None
    return template if prompt.count(processor.image_token) == 1 else None


def build_image_processor(preprocessor: dict[str, Any], image_size: int, *, pad: bool) -> BaseImageProcessor:
    """CLIP's preprocessing with the fields of a preprocessor_config.json, by default at `image_size` pixels.

    `pad` puts each image on a square of the mean colour first (the authors' stage 2), else its longer side is cut.
    """
    fields = {name: preprocessor[name] for name in _PREPROCESSOR_FIELDS if preprocessor.get(name) is not None}
    fields.setdefault("size", {"shortest_edge": image_size})
    fields.setdefault("crop_size", {"height": image_size, "width": image_size})
    return LlavaImageProcessorPil(do_pad=True, **fields) if pad else CLIPImageProcessorPil(**fields)


def read_processor(folder: Path, config: LlavaConfig) -> tuple[LlavaProcessor | None, BaseImageProcessor | None]:
    """Processor and image processor of a Hugging Face folder; `None` where it has no such files.

    Both preprocess with Pillow, as the authors do, also where torchvision is installed.

    Raises:
        CheckpointError: the files cannot be read.
    """
    files = [folder / name for name in ("processor_config.json", "preprocessor_config.json")]
    files = [file for file in files if file.is_file()]
    if not files:
        return None, None
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        values = read_json(files[-1])
        values = values.get("image_processor", values)
        image_size = config.vision_config.image_size
        return None, build_image_processor(values, image_size, pad=values.get("do_pad") is True)
    try:
        with without_byte_order_marks(folder) as readable:
            # Their processors of transformers cannot be built without torchvision, and ours reads the same files.
            kind = family_of_config(config).processor if takes_videos(config) else AutoProcessor
            processor = kind.from_pretrained(readable, backend="pil")
            if not isinstance(processor, ProcessorMixin):  # the files name no class that there is
                processor = family_of_config(config).plain_processor.from_pretrained(readable, backend="pil")
        processor.image_processor = _with_sizes(processor.image_processor, files, config.vision_config.image_size)
    except Exception as error:  # as in read_tokenizer
        raise CheckpointError(f"{folder}: the processor files cannot be read: {one_line(error)}") from error
    ensure_pad_token(processor.tokenizer)
    processor.patch_size = config.vision_config.patch_size  # which versions before 4.45 did not write
    processor.vision_feature_select_strategy = select_strategy(config)
    return processor, processor.image_processor


def _with_sizes(image_processor: BaseImageProcessor, files: list[Path], image_size: int) -> BaseImageProcessor:
    """The image processor with the tower's image size where no file says one: its class would take another tower's."""
    said: dict[str, Any] = {}
    for values in map(read_json, files):
        said |= values | (values.get("image_processor") or {})
    sizes = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    missing = {name: size for name, size in sizes.items() if said.get(name) is None and hasattr(image_processor, name)}
    return type(image_processor).from_dict(image_processor.to_dict() | missing) if missing else image_processor


def check_processor(folder: Path, processor: ProcessorMixin, config: LlavaConfig) -> None:
    """Check by one image that a processor gives what the model takes.

    Raises:
        CheckpointError: it fails, the image has other pixels or another number of placeholders, or a special token has
            no embedding or is the placeholder.
    """
    _check_special_tokens(folder, processor, config)
    templates = processor.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if not isinstance(template, str | None):
            raise CheckpointError(f"{folder}: a chat template must be a text, found {template!r}.")
    side = config.vision_config.image_size
    width, height = side, side // 2 + 1  # no square, so that it is padded or cut
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    try:
        made = processor(images=image, text=processor.image_token, return_tensors="pt")
    except Exception as error:  # as in read_tokenizer
        raise CheckpointError(f"{folder}: the processor files make no model input: {one_line(error)}") from error
    # Versions of transformers differ in what Video-LLaVA's are called.
    pixels = made["pixel_values"] if "pixel_values" in made else made["pixel_values_images"]
    expected = num_image_tokens(config, [(height, width)])[0]
    if pixels.shape[-3:] != (3, side, side) or not pixels.isfinite().all():
        what = "no numbers" if pixels.shape[-3:] == (3, side, side) else " x ".join(map(str, pixels.shape[-2:]))
        raise CheckpointError(
            f"{folder}: the preprocessing gives images of {what}, and the vision tower takes {side} x {side}; check "
            "size, crop_size, image_mean and image_std in the processor's files."
        )
    found = int((made["input_ids"] == config.image_token_id).sum())
    if select_strategy(config) == "default" and found != expected:
        raise CheckpointError(f"{folder}: the processor gives an image {found} tokens, and the model {expected}.")


def _check_special_tokens(folder: Path, processor: ProcessorMixin, config: LlavaConfig) -> None:
    rows = config.text_config.vocab_size
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        try:
            id_ = getattr(processor.tokenizer, f"{name}_id")
        except RecursionError:  # transformers 5.24 asks for the id of unk_token where a token has none, of itself, too
            raise CheckpointError(
                f"{folder}: the tokenizer's unk_token {processor.tokenizer.unk_token!r} is none of its tokens; check "
                "it in tokenizer.json and tokenizer_config.json."
            ) from None
        if id_ is not None and (id_ >= rows or id_ == config.image_token_id):
            why = "stands for images" if id_ == config.image_token_id else f"has none of the {rows} embeddings"
            raise CheckpointError(
                f"{folder}: the tokenizer's {name} {getattr(processor.tokenizer, name)!r} {why}; check it in "
                "tokenizer_config.json and special_tokens_map.json."
            )


def read_generation(folder: Path) -> dict[str, Any]:
    """The values of a checkpoint's generation_config.json; none where there is no such file."""
    file = folder / GENERATION
    return read_json(file) if file.is_file() else {}


def greedy_generation(values: dict[str, Any], config: LlavaConfig) -> dict[str, Any]:
    """An original checkpoint's generation settings for a converted model: greedy, and kept from its placeholders.

    The authors' file has `do_sample` set, to get past a check of their training library; they evaluate greedily.
    """
    sampling = ("do_sample", "temperature", "top_p", "top_k", "typical_p", "transformers_version")
    text = config.text_config
    return {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        **{name: value for name, value in values.items() if name not in sampling},
        "pad_token_id": text.pad_token_id,
        "suppress_tokens": sorted({*(values.get("suppress_tokens") or ()), config.image_token_id, text.pad_token_id}),
    }
