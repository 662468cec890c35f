"""The models of a measurement as folders that a server of either engine loads.

What is served is never the folder that was named but one of its own: without an end token, so that every answer is as
long as it is told to be, and at the number of vision tokens that was asked for. A plain LLaVA is saved with windows of
one patch and its own projector, so that 100 % and 25 % run through the same classes. Weights that stay are linked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_stf.errors import CheckpointError
from llava_stf.models.fusion.budget import VisionTokens, resolve_window, tokens_per_image
from llava_stf.models.llava_stf.configuration_llava_stf import LlavaStfConfig
from llava_stf.models.llava_stf.conversation import CHAT_TEMPLATE, SYSTEM_PROMPT


@dataclass(frozen=True)
class Served:
    """A model as it is served: under this name, from this folder, with so many tokens for each image."""

    name: str
    folder: Path
    vision_tokens: int


def parse(text: str) -> tuple[str, VisionTokens]:
    """The model and the vision tokens in `NAME` or `NAME:TOKENS`, tokens being a count or `all`."""
    name, colon, tokens = text.rpartition(":")
    if not colon or not (tokens == "all" or (tokens.isdecimal() and int(tokens) > 0)):
        return text, None
    return name, "all" if tokens == "all" else int(tokens)


def prepare(text: str, folder: Path) -> Served:
    """Makes `folder`, the model `NAME[:TOKENS]`; NAME as `load_model` takes it.

    Raises:
        LlavaStfError: as `load_model`.
    """
    from llava_stf.loading import load_model

    name, tokens = parse(text)
    if Path(name).is_dir() and (count := _fused_tokens(Path(name))) and tokens in (None, count):
        _link(Path(name), folder)
    else:
        model, processor = llava = load_model(name, vision_tokens=tokens, device="cpu", dtype="stored")
        if processor is None:
            raise CheckpointError(f"{name} came without a tokenizer and cannot be served; add its files.")
        count = llava.vision_tokens
        _save(model, processor, folder)
    _remove_end(folder)
    return Served(text, folder, count)


def _fused_tokens(folder: Path) -> int | None:
    """Vision tokens of a saved LLaVA-STF; `None` of any other folder."""
    from llava_stf.loading import read_config

    file = folder / "config.json"
    if not file.is_file() or json.loads(file.read_text()).get("model_type") != LlavaStfConfig.model_type:
        return None
    return tokens_per_image(read_config(folder))


def prepare_shape(shape: str, tokens: VisionTokens, folder: Path) -> Served:
    """Makes `folder`, a LLaVA with random weights, bfloat16, of a shape of `llava_stf_eval.speed.shapes`.

    Its vocabulary are single characters and numbered words, its prompts have no system prompt, so that text is no more
    of them than it is of LLaVA-1.5's.

    Raises:
        LlavaStfError: an unknown shape.
        FusionError: tokens it cannot have.
    """
    import torch

    from llava_stf import apply_stf
    from llava_stf_eval.speed.shapes import build_model

    model = build_model(shape, device=torch.device("cpu"), dtype=torch.bfloat16)
    processor = _processor(model.config)
    window = resolve_window(model.config, tokens)
    if window > 1:
        apply_stf(model, processor, window=window)
    _save(model, processor, folder)
    count = tokens_per_image(model.config)
    return Served(f"{shape}:{count}", folder, count)


def _processor(config: Any) -> Any:
    from transformers import LlamaTokenizer, LlavaImageProcessorPil

    from llava_stf.loading.testing import tiny_tokenizer
    from llava_stf.models.llava_stf.processing_llava_stf import LlavaStfProcessor
    from llava_stf_eval.speed.shapes import IMAGE_TOKEN

    small = tiny_tokenizer().get_vocab()
    pieces = [piece for piece in sorted(small, key=small.__getitem__) if piece not in ("<image>", "<pad>")]
    pieces += [f"▁w{number}" for number in range(len(pieces), IMAGE_TOKEN)]
    tokenizer = LlamaTokenizer(vocab={piece: id_ for id_, piece in enumerate(pieces)}, merges=[], legacy=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    side = config.vision_config.image_size
    image_processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return LlavaStfProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        chat_template=CHAT_TEMPLATE.replace(SYSTEM_PROMPT + " ", ""),
        fusion_window=1,
    )


def _save(model: Any, processor: Any, folder: Path) -> None:
    from llava_stf.reduction.apply import apply_pooling

    if not isinstance(model.config, LlavaStfConfig):
        apply_pooling(model, processor, window=1)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _link(source: Path, folder: Path) -> None:
    """All files of a checkpoint under their names, those that `_remove_end` changes as copies."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            here = folder / file.name
            if file.suffix == ".json":
                here.write_bytes(file.read_bytes())
            else:
                here.symlink_to(file.resolve())


def _remove_end(folder: Path) -> None:
    """Lets answers end at their longest alone, with text to the last token; vLLM is told so with each request."""
    from transformers import AutoTokenizer

    file = folder / "generation_config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    configs = [settings, config := json.loads((folder / "config.json").read_text()), config.get("text_config", {})]
    found = [AutoTokenizer.from_pretrained(folder).eos_token_id, *(each.get("eos_token_id") for each in configs)]
    ends = {end for each in found if each is not None for end in (each if isinstance(each, list) else [each])}
    settings["suppress_tokens"] = sorted({*(settings.get("suppress_tokens") or []), *ends})
    file.write_text(json.dumps(settings, indent=2) + "\n")
