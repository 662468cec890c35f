"""The training loop of every method, in the order in which things happen; several processes, exact resume."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil

from llava_stf.data.bad_samples import heard_from_workers
from llava_stf.encoders.objectives.base import Objective, Progress
from llava_stf.encoders.pretrain.build import build_objective
from llava_stf.encoders.pretrain.config import PretrainConfig
from llava_stf.encoders.pretrain.data import ImageDataset, default_side, open_images
from llava_stf.encoders.pretrain.schedule import Batches, cosine, cosine_by_epoch
from llava_stf.errors import DataError, LlavaStfError
from llava_stf.io.runs import (
    PARTIAL,
    check_options,
    checkpoint_step,
    describe_newest,
    prepare_output,
    publish_checkpoint,
    remove_run,
    reported_writing,
    save_model,
    write_options,
)
from llava_stf.io.signals import StepEnd, shield_worker

logger = logging.getLogger(__name__)


def pretrain(config: PretrainConfig) -> Path | None:
    """Train as `config` says; the output folder with the trained encoder, or None if `stop_after` came first.

    The encoder is an ordinary folder of transformers: `AutoModel.from_pretrained`, `AutoImageProcessor`.

    Raises:
        LlavaStfError: what a user can put right: options, files, images, a loss that is not finite.
    """
    output = Path(config.output)
    checkpoint = prepare_output(output, resume=config.resume, overwrite=config.overwrite)
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.accelerator.is_available())
    if checkpoint is not None:
        check_options(checkpoint, _options(config, accelerator))
    set_seed(config.seed)
    objective = build_objective(config)
    images = open_images(config.data, config.image_column)
    batches = _batches(config, len(images), accelerator, 0 if checkpoint is None else checkpoint_step(checkpoint))
    side = config.source_size or default_side(images, config.image_size)
    dataset = ImageDataset(images, side, max_bad=config.max_bad_images)

    if accelerator.num_processes > 1 and accelerator.device.type != "cpu":  # torch has it for accelerators alone
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    optimizer = torch.optim.AdamW(objective.parameter_groups(config.weight_decay), lr=0.0)
    model, optimizer = accelerator.prepare(objective, optimizer)
    set_seed(config.seed + accelerator.process_index)  # weights are equal everywhere, views are not
    if config.overwrite:
        if accelerator.is_main_process:
            remove_run(output)
        accelerator.wait_for_everyone()
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        logger.info("going on from %s", checkpoint)

    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.num_workers,
        worker_init_fn=_start_worker,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # its own: starting the loader must not move the run's generator
    )
    with heard_from_workers(), StepEnd() as step_end:
        finished = _train(config, accelerator, model, optimizer, loader, batches, step_end)
    if dataset.bad.summary():
        logger.warning("%s: others took their place", dataset.bad.summary())
    if not finished:
        return None
    if accelerator.is_main_process:
        encoder = objective.trained_encoder()
        recipe = objective.recipes[0]
        save_model(encoder, image_processor(recipe.size, recipe.mean, recipe.std), output, torch.float32)
    accelerator.wait_for_everyone()
    return output


def _train(
    config: PretrainConfig,
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    loader: DataLoader,
    batches: Batches,
    step_end: StepEnd,
) -> bool:
    """All steps from `batches.start` on, or the `stop_after` first of them; whether the run is complete.

    Raises `SystemExit` after a signal, with the checkpoint of the step under way written.
    """
    objective: Objective = accelerator.unwrap_model(model)
    model.train()
    output, parts = Path(config.output), iter(loader)
    last = batches.steps if config.stop_after is None else min(batches.steps, batches.start + config.stop_after)
    seen, since = 0, time.perf_counter()
    for step in range(batches.start, last):
        objective.before_step(Progress(step, batches.steps_per_epoch, config.epochs))
        rate = _set_rates(config, optimizer, step, batches)
        inputs = [
            objective.inputs(objective.views(images_of(next(parts), accelerator.device)))
            for _ in range(config.gradient_accumulation)
        ]
        for number in range(len(inputs[0])):
            losses = _accumulate(accelerator, model, [part[number] for part in inputs])
            if accelerator.scaler is not None:
                accelerator.unscale_gradients(optimizer)
            objective.clip_gradients()
            optimizer.step()
            optimizer.zero_grad()
        seen += batches.step_size
        done = step + 1
        logs = done % config.logging_steps == 0 or done == last
        stops = _anywhere(step_end.asked, accelerator)
        saves = done % config.save_steps == 0 or done == last or stops
        if logs or saves:
            _check_finite(losses, done, output)
        if logs:
            values = "  ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
            speed = seen / (time.perf_counter() - since)
            if accelerator.is_main_process:
                logger.info("step %d/%d  %s  lr %.2e  %.1f samples/s", done, batches.steps, values, rate, speed)
            seen, since = 0, time.perf_counter()
        if saves:
            _save_checkpoint(config, accelerator, done)
        if stops and done < last:
            raise step_end.stop(done)
    return last == batches.steps


def _anywhere(here: bool, accelerator: Accelerator) -> bool:
    """Whether it is so in one process of the run; all of them learn it in the same step."""
    if accelerator.num_processes == 1:
        return here
    return bool(accelerator.reduce(torch.tensor(int(here), device=accelerator.device), reduction="sum").item())


def _start_worker(worker: int) -> None:
    shield_worker()


def images_of(pixels: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, 3, H, W] -> float [B, 3, H, W] in [0, 1] on the device."""
    return pixels.to(device, non_blocking=True).float() / 255


def image_processor(size: int, mean: Any, std: Any) -> Any:
    """The preprocessing of a trained encoder: short side to `size`, middle cut out, normalised."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(mean),
        image_std=list(std),
    )


def _accumulate(accelerator: Accelerator, model: Any, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Gradients of the mean loss of `inputs`, exchanged between processes at the last; the last one's losses."""
    losses: dict[str, Tensor] = {}
    for number, part in enumerate(inputs):
        waits = number < len(inputs) - 1
        with accelerator.no_sync(model) if waits else contextlib.nullcontext():
            losses = model(**part)
            accelerator.backward(losses["loss"] / len(inputs))
    return losses


def _set_rates(config: PretrainConfig, optimizer: Any, step: int, batches: Batches) -> float:
    """Set learning rate and weight decay of `step`; returns the learning rate."""
    peak = config.base_learning_rate * batches.step_size / 256
    if config.schedule == "epoch":
        epoch = step // batches.steps_per_epoch
        rate = cosine_by_epoch(epoch, base=peak, epochs=config.epochs, warmup_epochs=config.warmup_epochs)
    else:
        warmup = config.warmup_epochs * batches.steps_per_epoch
        rate = cosine(step, base=peak, final=config.final_learning_rate, steps=batches.steps, warmup_steps=warmup)
    final = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
    decay = cosine(step, base=config.weight_decay, final=final, steps=batches.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = decay if group["decayed"] else 0.0
    return rate


def _batches(config: PretrainConfig, count: int, accelerator: Accelerator, start: int) -> Batches:
    batches = Batches(
        count,
        config.per_device_batch_size,
        epochs=config.epochs,
        accumulation=config.gradient_accumulation,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        seed=config.seed,
        start=start,
    )
    if not batches.steps_per_epoch:
        raise DataError(
            f"a step takes {batches.step_size} images ({config.gradient_accumulation} x {accelerator.num_processes} "
            f"processes x {config.per_device_batch_size}), and {config.data} has {count}: take a smaller "
            "per_device_batch_size"
        )
    return batches


def _options(config: PretrainConfig, accelerator: Accelerator) -> dict[str, Any]:
    """What decides the result of a run."""
    return config.identity() | {"processes": accelerator.num_processes}


def _check_finite(losses: dict[str, Tensor], step: int, output: Path) -> None:
    for name, value in losses.items():
        if not math.isfinite(value.item()):
            raise LlavaStfError(
                f"{name} is {value.item()} at step {step}: take a lower base_learning_rate, or bf16 in place of fp16; "
                f"{describe_newest(output)}"
            )


def _save_checkpoint(config: PretrainConfig, accelerator: Accelerator, step: int) -> None:
    """Weights, optimizer, gradient scaler, random states of every process, and the step, which is written last."""
    output, name = Path(config.output), f"checkpoint-{step}"
    folder = output / PARTIAL / name
    with reported_writing("a checkpoint", output):
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(folder))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_options(folder, _options(config, accelerator))
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
            publish_checkpoint(output, name, keep=config.save_total_limit)
    accelerator.wait_for_everyone()
