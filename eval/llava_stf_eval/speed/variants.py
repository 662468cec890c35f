"""One model in several variants that share every weight, each with its own way to shorten the sequence."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_stf.analysis.counting import Count, count
from llava_stf.errors import FusionError, nearest
from llava_stf.export.load import read_export_config
from llava_stf.export.model import ExportedLlava
from llava_stf.models.fusion.budget import patch_grid, window_of_tokens
from llava_stf.models.fusion.tiles import cells_of, has_tiles
from llava_stf.reduction import METHODS, Method, apply_reduction, check_reduction, with_options
from llava_stf.reduction.options import changed_options, option_types
from llava_stf_eval.speed.shown import Shown

FULL = "full"
EXPORT = "export"  # the method of a row whose method went into a graph


@dataclass(frozen=True)
class Setting:
    """A method at a budget of vision tokens for each image, or tile.

    `vision_tokens` are kept of an image or tile, `places` is how many ids for what is shown its prompts hold,
    `per_layer` how many tokens of it each LLM layer sees, `options` the method's that are not its defaults.
    """

    method: str
    vision_tokens: int
    places: int
    per_layer: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def mean_tokens(self) -> float:
        """Mean of `per_layer`, the budget by which methods are compared."""
        return sum(self.per_layer) / len(self.per_layer)

    @property
    def name(self) -> str:
        """How a table calls the setting."""
        return ", ".join([f"{self.method} {self.vision_tokens}", *(f"{name}={value}" for name, value in self.options)])


@dataclass(frozen=True)
class Variant:
    """A setting and the model that runs it."""

    setting: Setting
    model: LlavaForConditionalGeneration

    @property
    def cache_itemsize(self) -> int:
        """Bytes of a key's element."""
        if isinstance(self.model, ExportedLlava):
            return {"f32": 4, "u8": 1}[self.model.config.kv_cache]
        return self.model.dtype.itemsize

    def count(self, shown: Shown, *, text_tokens: int) -> Count:
        """What one prompt that shows this costs."""
        square = not has_tiles(self.model.config)
        return count(
            self.model.config, self.setting.per_layer if square else self.setting.vision_tokens,
            image_sizes=shown.image_sizes, frames=shown.videos, text_tokens=text_tokens, itemsize=self.cache_itemsize,
            skip_unused_blocks=self.setting.method != FULL,
        )  # fmt: skip


def settings_of(
    config: LlavaConfig,
    methods: list[str],
    budgets: list[int] | None,
    options: Mapping[str, Any] | None = None,
    shown: Shown | None = None,
) -> list[Setting]:
    """Every method at every budget, `"full"` at all patches alone; a budget left out is a quarter of the patches.

    Args:
        config: of a plain LLaVA.
        methods: `"full"`, or of `llava_stf.reduction`.
        budgets: tokens that are kept.
        options: each of every method that has one of that name.
        shown: what prompts show; default one image.

    Raises:
        FusionError: an unknown method, a budget that a method cannot give, an option that none of them has.
    """
    options, shown = options or {}, shown or Shown()
    patches, layers = patch_grid(config) ** 2, config.text_config.num_hidden_layers
    quarter = cells_of(patch_grid(config), 2) ** 2 if has_tiles(config) else patches // 4
    known = [FULL, *METHODS]
    settings = []
    for method in methods:
        if method not in known:
            raise FusionError(f"Unknown method '{method}': {nearest(method, known)}")
        for budget in [patches] if method == FULL else budgets or [quarter]:
            if method == FULL:
                places = shown.tokens(config, 1)
                settings.append(Setting(method, budget, places, (places,) * layers))
                continue
            found = _configured(method, options)
            check_reduction(config, found, budget)
            if has_tiles(config):
                places = shown.tokens(config, window_of_tokens(config, budget))
                settings.append(Setting(method, budget, places, (places,) * layers))
                continue
            per_layer = found.vision_tokens_per_layer(layers, patches, budget)
            own = tuple(changed_options(found).items())
            settings.append(Setting(method, budget, found.prompt_tokens(patches, budget), tuple(per_layer), own))
    for name in options:
        if not any(name in option_types(METHODS[method]) for method in methods if method != FULL):
            raise FusionError(f"None of the methods {', '.join(methods)} has an option '{name}'.")
    return list(dict.fromkeys(settings))


def export_setting(folder: Path) -> tuple[LlavaConfig, Setting]:
    """An export's config, and its one setting.

    Raises:
        ExportError: it is of another version or not whole.
    """
    config = read_export_config(folder)
    tokens = config.vision_tokens
    return config, Setting(EXPORT, tokens, tokens, (tokens,) * config.text_config.num_hidden_layers)


def build_variants(model: LlavaForConditionalGeneration, settings: list[Setting], *, seed: int = 0) -> list[Variant]:
    """A variant of a plain LLaVA for each setting; `model` itself stays as it is.

    Raises:
        FusionError: the model is no plain LLaVA or a method does not fit it.
    """
    variants = []
    for setting in settings:
        own = share_weights(model)
        if setting.method != FULL:
            method = with_options(METHODS[setting.method], dict(setting.options))
            apply_reduction(own, None, method, vision_tokens=setting.vision_tokens, seed=seed)
        variants.append(Variant(setting, own))
    return variants


def _configured(method: str, options: Mapping[str, Any]) -> Method:
    types = option_types(METHODS[method])
    return with_options(METHODS[method], {name: value for name, value in options.items() if name in types})


def share_weights(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """A model with the same weights and modules of its own: hooks, classes and configs can differ, memory stays.

    The state of an 8-bit layer of bitsandbytes is shared too, since it holds the weight.
    """
    kept: list[Any] = [*model.parameters(), *model.buffers()]
    kept += [state for module in model.modules() if (state := _quantized_state(module)) is not None]
    return copy.deepcopy(model, {id(item): item for item in kept})


def _quantized_state(module: nn.Module) -> Any:
    return vars(module).get("state") if type(module).__name__ == "Linear8bitLt" else None
