"""A method and its encoder from the options of a run."""

from __future__ import annotations

from dataclasses import replace

from transformers import ViTModel

from llava_stf.encoders.objectives import objective_class
from llava_stf.encoders.objectives.base import Objective
from llava_stf.encoders.pretrain.augment import Recipe
from llava_stf.encoders.pretrain.config import PretrainConfig, method_options
from llava_stf.models.vision.vits import vit_config

_COMMON_SCALE = (0.2, 1.0)


def build_objective(config: PretrainConfig) -> Objective:
    """The method that `config` names, with a new encoder of its kind.

    Raises:
        LlavaStfError: options that do not fit it.
    """
    assert config.method is not None  # PretrainConfig requires it
    kind = objective_class(config.method)
    options = method_options(kind.options_type, config.preset, config.options)
    vit = vit_config(config.method, config.size, image_size=config.image_size, patch_size=config.patch_size)
    if config.depth is not None:
        vit.num_hidden_layers = config.depth
    encoder = ViTModel._from_config(vit, attn_implementation=config.attn_implementation, add_pooling_layer=False)
    objective = kind(encoder, options)
    if config.augmentation == "common":
        objective.recipes = [common_recipe(recipe) for recipe in objective.recipes]
    return objective


def common_recipe(recipe: Recipe) -> Recipe:
    """The view for comparisons, of which only the size is the method's own.

    Crops of 20 % to 100 %, half of them blurred, a tenth solarised, ImageNet's statistics.
    """
    return replace(Recipe(recipe.size, _COMMON_SCALE), blur_p=0.5, solarize_p=0.1)
