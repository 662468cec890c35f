"""Aligns a new projector to the language model's own words, before both learn from images."""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F

from llava_stf.training.drawn_states import DrawnStates
from llava_stf.training.learner import Learner
from llava_stf.training.scene_words import SceneWords

logger = logging.getLogger(__name__)
LOGGING_STEPS = 100
WARMUP_STEPS = 50
LEARNING_RATE = 3e-3
BATCH = 32  # images


def align(learner: Learner, images: DrawnStates, *, steps: int, seed: int) -> None:
    """Train the projector alone to give, for each patch, the words of what it shows."""
    words = SceneWords(learner.encoder.tokenizer, learner.language_model.embed_tokens.weight.detach())
    optimizer = torch.optim.AdamW(learner.projector.parameters(), weight_decay=0.0)
    rng = np.random.default_rng([seed, 1])
    for step in range(steps):
        chosen = rng.choice(len(images), BATCH)
        scenes = [images.scenes[index] for index in chosen]
        wanted = torch.stack([words.patches(scene) for scene in scenes])
        tokens = learner.image_tokens(images.states(chosen)).float()
        error = F.mse_loss(tokens, wanted)
        loss = error + words.spelling_loss(tokens, scenes)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % LOGGING_STEPS == 0:
            spread = (wanted - words.common).square().mean().item()
            logger.info("align %d  squared error %.3f of %.3f, with spelling %.3f", step + 1, error, spread, loss)
