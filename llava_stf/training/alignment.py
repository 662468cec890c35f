"""Aligns a projector before it and the language model learn from images: to words, or to the patches that matter."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_stf.training.drawn_states import DrawnStates
from llava_stf.training.learner import Learner
from llava_stf.training.scene_words import SceneWords, flat_labels
from llava_stf.world.labels import patch_labels
from llava_stf.world.questions import pick

logger = logging.getLogger(__name__)
LOGGING_STEPS = 100
WARMUP_STEPS = 50
BATCH = 32  # images
GRID = 8  # patches along a side
BACKGROUND = 256  # images from which the background's token is taken


def align_to_words(learner: Learner, images: DrawnStates, *, steps: int, seed: int) -> None:
    """Train a plain projector alone to give, for each patch, the words of what it shows."""
    words = SceneWords(learner.encoder.tokenizer, learner.language_model.embed_tokens.weight.detach())

    def loss_of(chosen: np.ndarray, _: np.random.Generator) -> Tensor:
        scenes = [images.scenes[index] for index in chosen]
        labels = [flat_labels(scene) for scene in scenes]
        wanted = torch.stack([words.patches(scene, shown) for scene, shown in zip(scenes, labels, strict=True)])
        tokens = learner.image_tokens(images.states(chosen)).float()
        return F.mse_loss(tokens, wanted) + words.spelling_loss(tokens, labels)

    _train(learner.multi_modal_projector, loss_of, len(images), learning_rate=3e-3, steps=steps, seed=seed)


def align_to_patches(
    learner: Learner, images: DrawnStates, plain: nn.Module, windows: Sequence[int], *, steps: int, seed: int
) -> None:
    """Train a fusing projector alone to give, for each window, what the plain one says of the patches that matter.

    A window's token is to be the background's and what its patches' tokens add to it: all of it where a patch shows the
    middle of an object or of a character, elsewhere a k*k-th part as in the mean. So an image says each thing once at
    its full weight, however few patches it covers and wherever windows end, and says it as the language model knows it.

    Args:
        learner: with the fusing projector.
        images: to train on.
        plain: the projector of one patch each, which the language model was trained with; [B, N, C] to [B, N, H].
        windows: sides in patches; a step has one of them.
        steps: how many.
        seed: of images and windows.
    """
    labels = [patch_labels(scene) for scene in images.scenes]
    middle = np.stack([one["centre"] + one["char_left"] + one["char_right"] > 0 for one in labels]).reshape(-1, GRID**2)
    empty = np.stack([(one["place"] == 0) & (one["degraded"] == 0) for one in labels]).reshape(-1, GRID**2)
    first = np.arange(min(BACKGROUND, len(images)))

    @torch.no_grad()
    def said(states: list[Tensor]) -> Tensor:
        return plain(states[0].float())

    tokens = said(images.states(first))
    background = tokens[torch.from_numpy(empty[first])].mean(0)
    scale = (tokens - background).square().mean()

    def loss_of(chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        states, side = images.states(chosen), pick(rng, windows)
        weight = torch.where(torch.from_numpy(middle[chosen]), 1.0, side**-2)
        away = (said(states) - background) * weight[..., None]
        count = GRID // side
        wanted = away.unflatten(1, (count, side, count, side)).sum((2, 4)).flatten(1, 2) + background
        return F.mse_loss(learner.image_tokens(states, side).float(), wanted) / scale

    _train(learner.multi_modal_projector, loss_of, len(images), learning_rate=1e-3, steps=steps, seed=seed)


def _train(
    projector: nn.Module,
    loss_of: Callable[[np.ndarray, np.random.Generator], Tensor],
    images: int,
    *,
    learning_rate: float,
    steps: int,
    seed: int,
) -> None:
    """AdamW on losses of images' numbers; the learning rate rises over `WARMUP_STEPS` and falls to zero."""
    parameters = list(projector.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    rng = np.random.default_rng([seed, 1])
    for step in range(steps):
        loss = loss_of(rng.choice(images, BATCH), rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % LOGGING_STEPS == 0:
            logger.info("align %d  loss %.4f", step + 1, loss)
