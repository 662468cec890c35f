"""Images inverted from a LLaVA, for comparisons of what to distil on: noise that gradients bend until answers fit.

    python -m llava_stf_eval.measurement.inversion data/instruct.json runs/inverted

As in CMI (arXiv 2105.08584) an image is to make the model give known answers, here the first ones of a record (their
cross entropy), to be told by the model from all other images (a contrastive term over a view of it, with the images
made before as negatives), and to be smooth. The data's images are not looked at.

Shapes: B images of a batch, S their side, N image tokens, H LLM width, M images made before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llava_stf.data.preparation import Preparation
from llava_stf.data.sources import JsonRecords
from llava_stf.data.templates import template_of
from llava_stf.io.arguments import count, seed
from llava_stf.io.command import run
from llava_stf.training.data import collate
from llava_stf.training.distill import answer_log_probabilities, answers
from llava_stf_eval.measurement.image_sources import write_images
from llava_stf_kernels import place_tokens

if TYPE_CHECKING:
    from llava_stf import LlavaStf

BATCH = 64
STEPS = 30
QUESTIONS = 2  # of a record, that an image has to fit; more take longer
LEARNING_RATE = 0.1
TEMPERATURE = 0.1
DIVERSITY, SMOOTHNESS = 0.5, 1.0  # weights of the terms beside the cross entropy


class Inversion:
    """Makes images of noise that fit conversations.

    Args:
        llava: a plain LLaVA at all its tokens, in float32 on the CPU; its weights stay.
        steps: of gradient descent on each batch.
        seed: draws the noise and the views.

    Attributes:
        losses: cross entropy of the answers and contrastive term, of the last step on each batch.
    """

    def __init__(self, llava: LlavaStf, *, steps: int, seed: int) -> None:
        assert llava.processor is not None  # it came with the model
        self.model, self.processor = llava.model.requires_grad_(False), llava.processor
        self.steps = steps
        self.side = self.model.config.vision_config.image_size
        self._generator = torch.Generator().manual_seed(seed)
        own = self.processor.image_processor
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (own.image_mean, own.image_std))
        self._bank: list[Tensor] = []
        self.losses: list[tuple[float, float]] = []
        self._prepare = Preparation(
            self.processor, name="", images=Path(), template=template_of(self.processor), max_length=2048
        )

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> Tensor:
        """Images for conversations in LLaVA's form, one for each: uint8 [B, S, S, 3]."""
        batch = self._batch(records)
        inner = self.model.model
        embeddings = inner.get_input_embeddings()(batch["input_ids"])
        places = batch["input_ids"] == self.model.config.image_token_id
        wanted = batch["labels"][:, 1:][answers(batch["labels"])]
        noise = torch.randn(len(embeddings), 3, self.side // 4, self.side // 4, generator=self._generator)
        logits = F.interpolate(noise, (self.side, self.side), mode="bilinear").requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
        for _ in range(self.steps):
            images = logits.sigmoid()
            tokens = self._tokens(images)
            hidden = inner.language_model(
                inputs_embeds=place_tokens(embeddings, tokens.flatten(0, 1), places),
                attention_mask=batch["attention_mask"],
                use_cache=False,
            ).last_hidden_state
            found = answer_log_probabilities(self.model.lm_head(hidden[:, :-1][answers(batch["labels"])]))
            misfit = F.nll_loss(found, wanted)
            likeness = self._likeness(tokens, self._tokens(self._view(images)))
            roughness = images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
            optimizer.zero_grad()
            (misfit + DIVERSITY * likeness + SMOOTHNESS * roughness).backward()
            optimizer.step()
        self.losses.append((misfit.item(), likeness.item()))
        self._bank.append(_features(tokens).detach())
        return (255 * logits.detach().sigmoid()).round().to(torch.uint8).permute(0, 2, 3, 1)

    def _batch(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Ids and labels of the first questions of each record, with places for an image."""
        blank = Image.new("RGB", (self.side, self.side))
        asked = [record["conversations"][: 2 * QUESTIONS] for record in records]
        rows = [self._prepare({"image": blank, "conversations": turns}, n) for n, turns in enumerate(asked)]
        return collate(rows, pad_token_id=self.processor.tokenizer.pad_token_id)

    def _tokens(self, images: Tensor) -> Tensor:
        """Image tokens [B, N, H] of images in 0..1, float [B, 3, S, S]."""
        return torch.stack(list(self.model.model.get_image_features((images - self._mean) / self._std).pooler_output))

    def _view(self, images: Tensor) -> Tensor:
        """The images moved by up to an eighth of their side, round the edges, and mirrored."""
        most = self.side // 8
        shifts = torch.randint(-most, most + 1, (2,), generator=self._generator).tolist()
        return images.roll(shifts, (2, 3)).flip(3)

    def _likeness(self, tokens: Tensor, views: Tensor) -> Tensor:
        """InfoNCE: how little the view of an image is nearer to it than to the others and to those made before."""
        others = torch.cat([_features(tokens), *self._bank])
        return F.cross_entropy(_features(views) @ others.T / TEMPERATURE, torch.arange(len(views)))


def _features(tokens: Tensor) -> Tensor:
    """The mean of an image's tokens [B, N, H], at length 1: [B, H]."""
    return F.normalize(tokens.mean(dim=1), dim=-1)


def inverted(inversion: Inversion, data: Path) -> Iterator[Image.Image]:
    """An image for each record of a data file, in their order."""
    records = JsonRecords(data)
    for start in range(0, len(records), BATCH):
        numbers = range(start, min(start + BATCH, len(records)))
        for pixels in inversion([records[number] for number in numbers]):
            yield Image.fromarray(pixels.numpy())


def main() -> None:
    """The command."""
    from llava_stf import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="records whose images are replaced, JSON")
    parser.add_argument("output", type=Path, help="folder to write; it is created")
    parser.add_argument("--model", default="tiny-full", help="what the images are inverted from")
    parser.add_argument("--steps", type=count, default=STEPS, help="of gradient descent on each batch of 64")
    parser.add_argument("--seed", type=seed, default=0)
    options = parser.parse_args()
    llava = load_model(options.model, vision_tokens="all", device="cpu", dtype="float32")
    inversion = Inversion(llava, steps=options.steps, seed=options.seed)
    images = write_images(options.data, options.output, inverted(inversion, options.data))
    misfit, likeness = inversion.losses[-1]
    print(f"{options.output}: {images} images; of the last batch, cross entropy {misfit:.2f}, contrast {likeness:.2f}")


if __name__ == "__main__":
    run(main)
