"""A checkpoint taken apart, whatever format it came in: what every reader makes and every writer takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaProcessor
from transformers.image_processing_utils import BaseImageProcessor

from llava_stf.conversion.sources import Source
from llava_stf.errors import CheckpointError, LlavaStfError, one_line
from llava_stf.io.weights import StoredTensor
from llava_stf.models.fusion.config import FusionConfig
from llava_stf.models.llava_stf.keys import EMBEDDING, HEAD, HUGGING_FACE, is_unused, rename
from llava_stf.models.llava_stf.settings import check_settings, drop_absent_ids
from llava_stf.models.registry import FAMILIES, family_of_config
from llava_stf.models.vision.layers import default_fusion_layers, selected_layers, state_index


@dataclass
class CheckpointState:
    """One LLaVA or LLaVA-STF.

    `tensors` are by public name, `config` is that of the model to be written. `stored_rows` is how many vocabulary rows
    the source has. `source_name` translates a public name into the source's, for messages. `generation` are the values
    of generation_config.json. `notes` say what the user should know.
    """

    source: Source
    tensors: dict[str, StoredTensor]
    config: LlavaConfig
    stored_rows: int
    source_name: Callable[[str], str]
    generation: dict[str, Any]
    processor: LlavaProcessor | None
    image_processor: BaseImageProcessor | None
    sentencepiece: Path | None
    notes: list[str] = field(default_factory=list)

    @property
    def fused(self) -> bool:
        """Whether the projector is MBTF and STF."""
        return isinstance(self.config, FusionConfig)


def public_tensors(
    tensors: Mapping[str, StoredTensor], table: Mapping[str, str], *, tiles: bool = False
) -> dict[str, StoredTensor]:
    """The tensors, given by a name that `table` knows, by public name; without those of no use, whatever they hold.

    `tiles` says that the model cuts images into tiles.

    Raises:
        CheckpointError: `table` does not know one, two have the same public name, or one holds no floating-point
            numbers; it names the first.
    """
    public: dict[str, StoredTensor] = {}
    unknown = []
    for given_name, stored in tensors.items():
        if is_unused(given_name, tiles=tiles):
            continue
        name = rename(given_name, table)
        if name is None:
            unknown.append(stored)
        elif name in public:
            raise CheckpointError(f"{stored.file}: {public[name].name} and {stored.name} are the same weight twice.")
        else:
            public[name] = stored.require_float()
    if unknown:
        raise CheckpointError(
            f"{unknown[0].file} holds weights that no LLaVA has: {_some([stored.name for stored in unknown])}."
        )
    return public


def fusion_fields(
    tensors: Mapping[str, StoredTensor], *, width: int, depth: int, select_layer: int, layers: list[int] | None
) -> dict[str, Any]:
    """The fusion fields of a `LlavaStfConfig`, read from the projector's shapes.

    Args:
        tensors: by public name.
        width: hidden size of the vision tower.
        depth: its number of blocks.
        select_layer: the first of the fused states.
        layers: the list of states, where the user gives it; no checkpoint stores it.

    Raises:
        CheckpointError: the shapes are no MBTF and STF on such a tower, or do not tell the list.
    """
    shapes = {}
    for module in ("block_fusion", "spatial_fusion"):
        stored = tensors.get(f"multi_modal_projector.{module}.linear_1.weight")
        if stored is None or len(stored.shape) != 2 or not stored.shape[1] or stored.shape[1] % width:
            found = "none" if stored is None else f"{stored.name} of shape {list(stored.shape)} in {stored.file}"
            raise CheckpointError(
                f"Expected the first weight of {module} as [hidden, n * {width}] ({width} is the tower's width), "
                f"found {found}."
            )
        shapes[module] = stored.shape
    states, places = shapes["block_fusion"][1] // width, shapes["spatial_fusion"][1] // width
    window = math.isqrt(places)
    if window * window != places:
        raise CheckpointError(f"The projector fuses {places} patches into a token; expected a square number.")
    fusion_layers = layers or layers_of(states, depth, select_layer)
    if fusion_layers is None:
        raise CheckpointError(
            f"The projector fuses {states} hidden states and nothing tells which; give them as fusion_layers, deepest "
            f"first (the default for {depth} blocks would be {default_fusion_layers(depth, select_layer)})."
        )
    if len(fusion_layers) != states:
        raise CheckpointError(f"The projector fuses {states} hidden states, fusion_layers names {len(fusion_layers)}.")
    return {
        "fusion_layers": fusion_layers,
        "fusion_window": window,
        "fusion_block_hidden_size": shapes["block_fusion"][0],
        "fusion_hidden_size": shapes["spatial_fusion"][0],
    }


def layers_of(states: int, depth: int, select_layer: int) -> list[int] | None:
    """The list of `states` fused states on a tower of `depth` blocks, as far as the number tells; else `None`.

    The authors' lists of eight and of four are fixed whatever the tower; others follow its depth.
    """
    fixed = {8: [21, 18, 15, 12, 9, 6, 3], 4: [18, 12, 6]}
    if states in fixed and depth >= fixed[states][0]:
        return [select_layer, *fixed[states]]
    layers = default_fusion_layers(depth, select_layer)
    return layers if len(layers) == states else None


def build_config(file: Path, cls: type[LlavaConfig], fields: dict[str, Any]) -> LlavaConfig:
    """A config from JSON values, in which ids that the model has no row for are none.

    Args:
        file: config.json, for messages.
        cls: of the config.
        fields: the values.

    Raises:
        CheckpointError: they make no sense.
        FusionError: so do those of the fusion.
    """
    try:
        config = cls.from_dict(fields)
    except LlavaStfError:
        raise
    except Exception as error:  # configs check little, so that wrong values fail in many ways
        raise CheckpointError(f"{file} does not describe a model: {one_line(error)}") from error
    config.vision_feature_layer = selected_layers(config)
    for part in (config, config.text_config):
        check_settings(file, vars(part))
        drop_absent_ids(part, config.text_config.vocab_size)
        part.return_dict, part.is_encoder_decoder = True, False  # a LLaVA runs with nothing else
    _check_tower(file, config)
    return config


def _check_tower(file: Path, config: LlavaConfig) -> None:
    vision = config.vision_config
    for name in ("image_size", "patch_size"):
        size = getattr(vision, name, None)
        if type(size) is not int or size < 1:
            raise CheckpointError(f"{file}: {name} of vision_config must be a positive whole number, found {size!r}.")
    layers, depth = config.vision_feature_layer, vision.num_hidden_layers
    for layer in [layers] if isinstance(layers, int) else layers:
        if state_index(layer, depth) == 0:
            raise CheckpointError(f"{file}: vision_feature_layer {layer} is no output of the tower's {depth} blocks.")


def check_tensors(
    source: Source,
    config: LlavaConfig,
    tensors: Mapping[str, StoredTensor],
    *,
    rows: int | None = None,
    source_name: Callable[[str], str] = str,
) -> None:
    """Check that `tensors` are exactly the weights of `config`'s model.

    Args:
        source: where they come from, for messages.
        config: of the model.
        tensors: by public name.
        rows: rows that the vocabulary's two matrices have on disk, where they are not yet the config's.
        source_name: the source's name of a public one, for what is missing.

    Raises:
        CheckpointError: they are not; it names the first offenders.
    """
    where = f"{source.folder} does not fit its config.json"
    _check_depth(config, tensors, where)
    expected = _expected_shapes(source, config)
    missing = [name for name in expected if name not in tensors]
    if config.tie_word_embeddings and HEAD in missing:
        missing.remove(HEAD)
    if missing:
        raise CheckpointError(f"{where}: missing {_some([source_name(name) for name in missing])}.")
    unknown = [stored for name, stored in tensors.items() if name not in expected]
    if unknown:
        raise CheckpointError(f"{where}: unknown {_some([stored.name for stored in unknown])} in {unknown[0].file}.")
    for name, stored in tensors.items():
        shape = expected[name]
        if rows is not None and name in (EMBEDDING, HEAD):
            shape = (rows, *shape[1:])
        if stored.shape != shape:
            raise CheckpointError(
                f"{where}: {stored.name} in {stored.file} has shape {list(stored.shape)}, expected {list(shape)}."
            )


def _check_depth(config: LlavaConfig, tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Before a model is built: a wrong depth would make it arbitrarily large."""
    depths = {
        "language_model.model.layers": config.text_config.num_hidden_layers,
        "vision_tower.vision_model.encoder.layers": config.vision_config.num_hidden_layers,
    }
    for blocks, expected in depths.items():
        pattern = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
        found = max((int(match[1]) for name in tensors if (match := pattern.match(name))), default=-1) + 1
        if found != expected:
            part = "language model" if blocks.startswith("language") else "vision tower"
            raise CheckpointError(f"{where}: {expected} {part} blocks expected, weights of {found} found.")


def _expected_shapes(source: Source, config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by public name, from a model that is built without memory."""
    stock, family = next((kind, one) for kind, one in FAMILIES.items() if one is family_of_config(config))
    model_class: Any = family.model if isinstance(config, FusionConfig) else stock
    try:
        with torch.device("meta"):
            model = model_class(config)
    except LlavaStfError:
        raise
    except Exception as error:  # as in build_config
        raise CheckpointError(f"{source.config_file} does not describe a model: {one_line(error)}") from error
    names = ((rename(name, HUGGING_FACE), tensor) for name, tensor in model.state_dict().items())
    return {name: tuple(tensor.shape) for name, tensor in names if name is not None}


def _some(names: list[str]) -> str:
    """The first three names and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
