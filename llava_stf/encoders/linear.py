"""Linear probe: one linear layer on frozen features, as PatchMix trains it (docs/encoders/methods.md, Linear probe)."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_stf.encoders.labelled import Accuracy, Encoder, Labelled, features, pooled
from llava_stf.encoders.pretrain.augment import Augmentation, Recipe
from llava_stf.encoders.pretrain.data import default_side, square
from llava_stf.encoders.pretrain.schedule import cosine

logger = logging.getLogger(__name__)

# For a batch of 256; the papers give ViT-T, S and B.
LEARNING_RATES = {192: 0.05, 384: 0.02, 768: 0.01}
_DEFAULT_LEARNING_RATE = 0.02
_CROP_SCALE = (0.08, 1.0)


def linear_probe(
    encoder: Encoder,
    train: Labelled,
    test: Labelled,
    *,
    epochs: int = 100,
    batch_size: int = 256,
    learning_rate: float | None = None,
    augment: bool = True,
    seed: int = 0,
) -> Accuracy:
    """Train a linear layer on the features of a frozen encoder and measure it after every epoch.

    SGD with Nesterov momentum 0.9 and no weight decay, learning rate times batch_size / 256, cosine to 0 by epoch.

    Args:
        encoder: stays as it is.
        train: what the layer learns.
        test: what it is measured on.
        epochs: passes over the training part.
        batch_size: images in a step.
        learning_rate: for a batch of 256; default: the papers' for the encoder's width, 0.02 for other widths.
        augment: random resized crops (8 % to 100 %) and flips, so every epoch runs the encoder, as in the papers;
            otherwise the features are taken once, which is far cheaper.
        seed: of the layer, the order and the augmentation.
    """
    torch.manual_seed(seed)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    test_features = features(encoder, test)
    layer = nn.Linear(test_features.shape[1], classes)
    if learning_rate is None:
        learning_rate = LEARNING_RATES.get(test_features.shape[1], _DEFAULT_LEARNING_RATE)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    fixed = None if augment else features(encoder, train)
    views = Augmentation(
        Recipe(encoder.size, _CROP_SCALE, jitter_p=0.0, gray_p=0.0, mean=encoder.mean, std=encoder.std)
    )
    best = accuracy = 0.0
    for epoch in range(epochs):
        peak = learning_rate * batch_size / 256
        for group in optimizer.param_groups:
            group["lr"] = cosine(epoch, base=peak, final=0.0, steps=epochs)
        for numbers in torch.randperm(len(train)).split(batch_size):
            inputs = _augmented_features(encoder, views, train, numbers) if fixed is None else fixed[numbers]
            loss = F.cross_entropy(layer(inputs), train.labels[numbers])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.inference_mode():
            accuracy = 100 * (layer(test_features).argmax(dim=1) == test.labels).float().mean().item()
        best = max(best, accuracy)
        logger.info("epoch %d/%d  loss %.4f  accuracy %.2f", epoch + 1, epochs, loss.item(), accuracy)
    return Accuracy(last=accuracy, best=best)


@torch.no_grad()
def _augmented_features(encoder: Encoder, views: Augmentation, part: Labelled, numbers: Tensor) -> Tensor:
    """Features of one random view of each image: float32 [b, D] on the CPU."""
    side = default_side(part.images, encoder.size)
    pixels = torch.stack([square(part.images[int(number)], side) for number in numbers])
    view = views(pixels.to(encoder.device).float() / 255)
    return pooled(encoder, view.pixels).cpu()
