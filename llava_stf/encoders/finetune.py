"""Fine-tuning: the whole encoder and a linear layer on its feature, trained on labelled images.

Two protocols, PatchMix's and APS's; what their code does and this does otherwise stands in docs/encoders/methods.md,
Fine-tuning.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPImageProcessorPil, ViTForImageClassification, ViTModel

from llava_stf.encoders.finetune_options import FinetuneOptions
from llava_stf.encoders.finetune_views import TrainingViews, takes_whole_images
from llava_stf.encoders.labelled import Accuracy, Encoder, Labelled, evaluation_batch, pooled
from llava_stf.encoders.mixing import mix_batch, smoothed
from llava_stf.encoders.objectives.base import apply_drop_path
from llava_stf.encoders.pretrain.schedule import cosine
from llava_stf.errors import LlavaStfError
from llava_stf.io.publish import publish, refuse_existing
from llava_stf.models.vision.states import tower_blocks
from llava_stf.models.vision.vits import IMAGENET_MEAN, IMAGENET_STD

logger = logging.getLogger(__name__)


def finetune(
    encoder: Encoder,
    train: Labelled,
    test: Labelled,
    options: FinetuneOptions,
    *,
    seed: int = 0,
    output: Path | None = None,
) -> Accuracy:
    """Train a copy of the encoder with a new classifier and measure it after every epoch.

    Args:
        encoder: stays as it is.
        train: what the copy learns.
        test: what it is measured on.
        options: the protocol.
        seed: of the classifier, the order and the augmentation.
        output: folder to write, a `ViTForImageClassification` with its preprocessor, after the last epoch.

    Raises:
        LlavaStfError: the loss is not finite, or `output` exists or cannot hold such an encoder.
    """
    if output is not None:
        refuse_existing(output)
        _check_writable(encoder)
    torch.manual_seed(seed)
    if options.statistics == "imagenet":
        encoder = replace(encoder, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    student = replace(encoder, model=copy.deepcopy(encoder.model))
    model, whole = student.model, takes_whole_images(encoder, options.crop)
    stochastic_depth(model, options.drop_path)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    classifier = nn.Linear(model.config.hidden_size, classes).to(encoder.device)
    views = TrainingViews(encoder, train, options.crop, options.magnitude, options.erasing) if options.augment else None

    groups = parameter_groups(model, classifier, options.weight_decay, options.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    batches = math.ceil(len(train) / options.batch_size)
    best = accuracy = 0.0
    for epoch in range(options.epochs):
        model.train()
        for number, chosen in enumerate(torch.randperm(len(train)).split(options.batch_size)):
            rate = learning_rate(epoch * batches + number, batches, options)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            targets = smoothed(train.labels[chosen].to(encoder.device), classes, options.smoothing)
            if views is None:
                pixels = evaluation_batch(encoder, train, chosen, border=not whole)
            else:
                pixels, targets = mix_batch(
                    views(chosen), targets, mixup=options.mixup, cutmix=options.cutmix, switch=options.switch
                )
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=options.mixed_precision == "bf16"):
                logits = classifier(pooled(student, pixels))
            loss = F.cross_entropy(logits.float(), targets)
            if not loss.isfinite():
                raise LlavaStfError(f"the loss is {loss.item()} in epoch {epoch + 1}: take a lower learning_rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        accuracy = _accuracy(student, classifier, test, border=not whole)
        best = max(best, accuracy)
        logger.info("epoch %d/%d  loss %.4f  accuracy %.2f", epoch + 1, options.epochs, loss.item(), accuracy)
    if output is not None:
        _write(student, classifier, output, border=not whole)
    return Accuracy(last=accuracy, best=best)


def learning_rate(step: int, steps_per_epoch: int, options: FinetuneOptions) -> float:
    """The classifier's rate at `step`: linear from the first to the peak over the warm-up, then a cosine."""
    first = options.first_learning_rate
    return first + cosine(
        step,
        base=options.learning_rate * options.batch_size / 256 - first,
        final=options.final_learning_rate - first,
        steps=options.epochs * steps_per_epoch,
        warmup_steps=options.warmup_epochs * steps_per_epoch,
    )


def parameter_groups(
    model: nn.Module, classifier: nn.Module, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups; `share` is that of the learning rate.

    It is 1 for the classifier and what follows the blocks, `layer_decay` for the last block, its square for the one
    below, and so on down to what precedes the blocks.
    """
    blocks = tower_blocks(model)
    block_of = {id(parameter): number for number, block in enumerate(blocks, 1) for parameter in block.parameters()}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    top, layer = len(blocks) + 1, 0
    for parameter in [*model.parameters(), *classifier.parameters()]:
        layer = block_of.get(id(parameter), top if layer else 0)
        decays = parameter.ndim > 1
        group = {"params": [], "share": layer_decay ** (top - layer), "weight_decay": weight_decay * decays}
        groups.setdefault((layer, decays), group)["params"].append(parameter)
    return list(groups.values())


def stochastic_depth(model: nn.Module, rate: float) -> None:
    """Make the blocks drop their branches in training, for whole images, in place.

    `rate` is that of the last block; below it is less in proportion.
    """
    blocks = tower_blocks(model)
    for number, block in enumerate(blocks):
        for branch in block.children():
            if any(isinstance(part, nn.Linear) for part in branch.modules()):
                branch.register_forward_hook(partial(_drop_output, rate * number / max(len(blocks) - 1, 1)))


def _drop_output(rate: float, branch: nn.Module, inputs: Any, output: Any) -> Any:
    if not branch.training:
        return output
    if isinstance(output, tuple):
        return apply_drop_path(output[0], rate), *output[1:]
    return apply_drop_path(output, rate)


@torch.inference_mode()
def _accuracy(student: Encoder, classifier: nn.Module, test: Labelled, *, border: bool) -> float:
    right = 0
    for numbers in torch.arange(len(test)).split(256):
        logits = classifier(pooled(student, evaluation_batch(student, test, numbers, border=border)))
        right += int((logits.argmax(dim=1).cpu() == test.labels[numbers]).sum())
    return 100 * right / len(test)


def _check_writable(encoder: Encoder) -> None:
    if not isinstance(encoder.model, ViTModel) or encoder.pooling != "class":
        raise LlavaStfError(
            f"a fine-tuned encoder is written as ViTForImageClassification, which is a ViT classified by its class "
            f"token, found a {type(encoder.model).__name__} with pooling {encoder.pooling}: leave output (--output) out"
        )


def _write(student: Encoder, classifier: nn.Linear, output: Path, *, border: bool) -> None:
    """The fine-tuned encoder with its classifier, and the preprocessing that it was measured with."""
    config = copy.deepcopy(student.model.config)
    config.num_labels = classifier.out_features
    written = ViTForImageClassification(config)
    written.vit.load_state_dict(student.model.state_dict())
    written.classifier.load_state_dict(classifier.state_dict())
    side = student.size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": int(side * 256 / 224) if border else side},
        crop_size={"height": side, "width": side},
        image_mean=list(student.mean),
        image_std=list(student.std),
    )
    with publish(output) as folder:
        written.save_pretrained(folder)
        processor.save_pretrained(folder)
