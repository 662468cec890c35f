"""What each step of training on drawn images is on: lessons on letters, short queries or questions, and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_stf.training.drawn_batches import pair_rows, training_rows
from llava_stf.training.drawn_states import DrawnStates
from llava_stf.training.learner import Learner
from llava_stf.training.lessons import COURSE, Progress, answer_loss, collate, draw_exercises
from llava_stf.training.scene_words import SceneWords
from llava_stf.world.pairs import UNKNOWN
from llava_stf.world.questions import pick
from llava_stf.world.scene import DEGRADED_SHARE, Scene, sample_scene

ASKED_FROM = 3  # so many lessons on letters are taken before images are asked about by letter
REHEARSED = 0.3
DEGRADED = 0.04  # of the images that are trained on; they have one family's questions alone
AVERAGED = 0.03  # weight of one answer in the running share of right ones
OBJECT_TOKENS = (12, 24)  # of a scene told as objects, in the first half of the steps and in the second


@dataclass(frozen=True)
class Part:
    """What a part's steps are on, in shares; the rest are on questions. `projector` is its share of the learning rate.

    `alignment` steps of the projector alone come before them, in `tokens` where it has weights that the start has not.
    When all lessons on letters were taken, `REHEARSED` of their steps are left.
    """

    letters: float
    pairs: float
    told: bool = False
    alignment: int = 0
    projector: float = 0.0


PARTS = {
    "objects": Part(letters=0.5, pairs=0.3, told=True),
    "images": Part(letters=0.4, pairs=0.25, alignment=5000, projector=1.0),
    "tokens": Part(letters=0.1, pairs=0.2, alignment=4000, projector=0.3),
}


class Steps:
    """The steps of a part, each by its number and the seed alone but for what was answered right before.

    Args:
        learner: what is trained.
        plan: the part.
        images: to ask about; none where scenes are told.
        windows: sides of the learner's windows, of which a step has one; none of a plain LLaVA.
        steps: how many there will be.
        batch_size: images of a step.
        seed: of images and questions.

    Attributes:
        right: the running share of right answers of each kind of question.
    """

    def __init__(
        self,
        learner: Learner,
        plan: Part,
        images: DrawnStates | None,
        windows: Sequence[int],
        *,
        steps: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.learner, self.plan, self.images, self.windows = learner, plan, images, windows
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.right: dict[str, float] = {}
        self.letters = Progress()
        self.likely = None if images is None else _likelihoods(images)

    def state(self) -> dict[str, Any]:
        """What the next step depends on, for a checkpoint."""
        return {"right": self.right, "letters": self.letters.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of another run."""
        self.right, self.letters = dict(state["right"]), Progress(**state["letters"])

    def loss(self, step: int) -> Tensor:
        """The loss of a step, and note what is answered right in it."""
        rng = np.random.default_rng([self.seed, step])
        kind = rng.random()
        lettered = self.plan.letters * (REHEARSED if self.letters.lesson == len(COURSE) else 1)
        if kind < lettered:
            return self._letters_loss(rng)
        scenes, states = self._images(rng)
        drawn_rows = pair_rows if kind < lettered + self.plan.pairs else training_rows
        asked = self.letters.lesson >= ASKED_FROM
        rows = [drawn_rows(scene, rng, self.right, lettered=asked) for scene in scenes]
        batch = self.learner.encoder.batch(list(zip(*rows, strict=True)))
        if states is None:
            image = self._told(scenes, step, rng)
        else:
            image = self.learner.image_tokens(states, pick(rng, self.windows) if self.windows else None)
        loss, answers = self.learner(image, batch)
        for name, answer in zip(batch.kinds, answers.tolist(), strict=True):
            if name is not None:
                before = self.right.get(name, UNKNOWN)
                self.right[name] = before + AVERAGED * (answer - before)
        return loss

    def _letters_loss(self, rng: np.random.Generator) -> Tensor:
        """Of a step of the lessons on letters, in their order; at the end all of them are rehearsed."""
        learner = self.learner
        exercises = draw_exercises(COURSE, self.letters, int(rng.integers(2**31)))
        batch = collate(exercises, learner.encoder.tokenizer)
        loss, right = answer_loss(learner.language_model, learner.lm_head, batch, learner.dtype)
        self.letters.advance(COURSE, batch["lessons"].tolist(), right.tolist())
        return loss

    def _images(self, rng: np.random.Generator) -> tuple[list[Scene], list[Tensor] | None]:
        """The scenes of a step and the tower's states of their images, none where they are told."""
        if self.images is None:
            return [_told_scene(rng) for _ in range(self.batch_size)], None
        chosen = rng.choice(len(self.images), self.batch_size, p=self.likely)
        return [self.images.scenes[index] for index in chosen], self.images.states(chosen)

    def _told(self, scenes: Sequence[Scene], step: int, rng: np.random.Generator) -> Tensor:
        """Scenes in the language model's words as they are now, [B, M, H]."""
        learner = self.learner
        words = SceneWords(learner.encoder.tokenizer, learner.language_model.embed_tokens.weight.detach())
        count = OBJECT_TOKENS[2 * step >= self.steps]
        return torch.stack([words.objects(scene, rng, count) for scene in scenes]).to(learner.dtype)


def _told_scene(rng: np.random.Generator) -> Scene:
    """A scene, degraded `DEGRADED` of the time."""
    while True:
        scene = sample_scene(rng)
        if not scene.degraded or rng.random() < DEGRADED / DEGRADED_SHARE:
            return scene


def _likelihoods(images: DrawnStates) -> np.ndarray:
    """How often each image is drawn: degraded ones `DEGRADED` of the time, all others alike."""
    degraded = np.array([scene.degraded for scene in images.scenes])
    weights = np.where(degraded, DEGRADED / max(1, degraded.sum()), (1 - DEGRADED) / max(1, (~degraded).sum()))
    return weights / weights.sum()
