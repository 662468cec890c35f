"""The transformers Trainer with a learning rate per part, runs that survive interruption, and throughput in its log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from llava_stf.errors import LlavaStfError
from llava_stf.io.runs import checkpoint_step, describe_newest
from llava_stf.io.signals import StepEnd, shield_worker
from llava_stf.training.budgets import budget_of_step, with_budget
from llava_stf.training.checkpoint_trainer import CheckpointTrainer
from llava_stf.training.config import FinetuneConfig
from llava_stf.training.data import with_filler
from llava_stf.training.optim import parameter_groups
from llava_stf.training.sampling import EpochSampler
from llava_stf.training.sharding import prepare_plugin

NAMED_SAMPLES = 16

logger = logging.getLogger(__name__)


class FinetuneTrainer(CheckpointTrainer):
    """A trainer for a `FinetuneConfig`, whose result depends on neither interruptions nor the number of processes.

    Modifications:
        train: stops with a checkpoint on SIGTERM and SIGINT; a finished run that is resumed takes no step more.
        get_train_dataloader, _get_train_sampler: an order that depends on seed and epoch alone; patient workers.
        create_optimizer: AdamW over one parameter group per part of the model; a step without any image leaves the
            projector as it is, also where its batches are given one.
        training_step: brings the batch to the step's vision tokens, to each of them one after the other where a step
            has several; counts samples and tokens, and remembers losses and sample ids.
        compute_loss: a share of the mean over the step's vision tokens.
        _get_grad_norm: stops the run at a loss or gradient that is not finite, before the weights change.
        get_batch_samples: measures how long the process waits for its data; where weights are sharded, all processes
            have images in a forward pass, or none has; where the projector alone is trained, every batch has one.
        log: samples and LLM tokens (no padding) per second since the last line, over all processes, and the share of
            the time that this process waited for data.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        budgets: list[int],
        prepared_budget: int,
        filler: Callable[[], dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        """`budgets` are the vision tokens per image that the run trains for, the data have `prepared_budget`.

        `filler` makes a batch of one image and nothing to learn.
        """
        super().__init__(config, **kwargs)
        self._filler = filler
        # Where the projector alone is trained, a batch of text alone has no gradient, and no backward pass. Under
        # DeepSpeed what gets no gradient in a pass keeps that of an earlier step, which counts in its norm.
        self._needs_image = self.is_deepspeed_enabled or config.learning_rates.keys() == {"projector"}
        if self.is_fsdp_enabled:
            prepare_plugin(self.accelerator.state.fsdp_plugin, self.model)
        self.budgets, self.prepared_budget = budgets, prepared_budget
        self.filled = False
        self._has_images = True  # the optimizer step under way, in any process
        self.step_budget = prepared_budget  # vision tokens per image in the pass under way
        self.terminating = False  # in all processes, from the same step on
        self._step_end = StepEnd()
        self._loader: DataLoader[Any] | None = None
        self._step_losses: list[tuple[list[str], Tensor]] = []
        self.add_callback(_StepCallback(self))
        self.restart_clock()

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`.

        Raises:
            SystemExit: with 143 after SIGTERM and 130 after SIGINT, when the step under way is done and its checkpoint
                written.
            LlavaStfError: a loss is not finite, or a checkpoint cannot be written.
        """
        if resume_from_checkpoint is not None:
            step = checkpoint_step(Path(resume_from_checkpoint))
            if step >= self._total_steps():
                return TrainOutput(step, 0.0, {})
        try:
            with self._step_end:
                output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            if self._loader is not None:
                self._loader._iterator = None  # which ends its workers; the Trainer keeps the loader
        if self.terminating and output.global_step < self.state.max_steps:
            raise self._step_end.stop(output.global_step)
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        """See the class: workers that wait."""
        loader = super().get_train_dataloader()
        # Accelerate's loader wraps torch's, and a resumed epoch copies this attribute from it.
        inner = self._loader = loader.base_dataloader
        inner.worker_init_fn = partial(_start_worker, inner.worker_init_fn)
        return loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """See the class: a group per part of the model."""
        if self.optimizer is None:
            groups = parameter_groups(
                self.model if model is None else model,
                self.finetune_config.learning_rates,
                weight_decay=self.finetune_config.weight_decay,
            )
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, self.finetune_config.adam_beta2), fused=True)
            if self._needs_image:
                self.optimizer.register_step_pre_hook(self._leave_unused_projector)
        return self.optimizer

    def _leave_unused_projector(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Take back the gradient of zeros that a step has whose only images are fillers: momentum would move it."""
        if not self._has_images:
            for group in optimizer.param_groups:
                if group["part"] == "projector":
                    for parameter in group["params"]:
                        parameter.grad = None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """See the class: the step's vision tokens, counts and losses."""
        ids = inputs.pop("sample_ids", [])
        self.filled = len(ids) < len(inputs["input_ids"])  # its images are no sample's
        whole = self.accelerator.unwrap_model(model)
        whole = whole.get_base_model() if self.finetune_config.lora_rank is not None else whole
        self._counts[0] += len(ids)
        losses = []
        for budget in self._step_budgets():
            self.step_budget = budget
            brought = dict(with_budget(whole, inputs, self.prepared_budget, budget))
            self._counts[1] += brought["attention_mask"][: len(ids)].sum()
            losses.append(super().training_step(model, brought, *args, **kwargs))
        loss = torch.stack(losses).sum()
        self._step_losses.append((ids, loss))
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See the class: a share of the mean."""
        return super().compute_loss(model, inputs, *args, **kwargs) / len(self._step_budgets())

    def _step_budgets(self) -> list[int]:
        """Vision tokens per image in the optimizer step under way, the same in all processes."""
        config, state = self.finetune_config, self.state
        schedule = config.vision_tokens_schedule
        if schedule == "all":
            return self.budgets
        return [budget_of_step(self.budgets, schedule, state.global_step, state.max_steps, config.seed)]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """See the class: the wait for data is measured."""
        start = time.perf_counter()
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._waited += time.perf_counter() - start
        return self._alike_in_all_processes(batches), items

    def _alike_in_all_processes(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give a batch of text alone an image where it needs one, or another process has one in the same forward pass.

        Every process has to take part when a sharded tower and projector are gathered.
        """
        if self._filler is None or not (self.is_fsdp_enabled or self._needs_image):
            return batches
        found = torch.tensor(["pixel_values" in batch for batch in batches], dtype=torch.int64, device=self.args.device)
        anywhere = self.accelerator.reduce(found, reduction="sum").tolist()
        self._has_images = any(anywhere)
        return [
            with_filler(batch, self._filler())
            if (others or self._needs_image) and "pixel_values" not in batch
            else batch
            for batch, others in zip(batches, anywhere, strict=True)
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See the class: with samples and tokens per second."""
        if "loss" in logs:
            samples, tokens = self.accelerator.reduce(self._counts, reduction="sum").tolist()
            seconds = time.perf_counter() - self._clock
            logs["samples_per_second"] = round(samples / seconds, 1)
            logs["tokens_per_second"] = round(tokens / seconds, 1)
            logs["data_share"] = round(self._waited / seconds, 4)
            self.restart_clock()
        super().log(logs, start_time)

    def restart_clock(self) -> None:
        """Count samples, tokens and waiting for the next line of the log from now on."""
        self._clock, self._waited = time.perf_counter(), 0.0
        self._counts = torch.zeros(2, dtype=torch.int64, device=self.args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        config = self.finetune_config
        return EpochSampler(
            len(dataset),
            self._samples_per_step(),
            config.seed,
            lambda: self.state.global_step,
            lengths=dataset.lengths if config.group_by_length and config.stage != "align" else None,
        )

    def _samples_per_step(self) -> int:
        arguments = self.args
        return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size

    def _total_steps(self) -> int:
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * math.ceil(len(self.train_dataset) / self._samples_per_step()))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._agree(0.0 if norm is None else float(norm))
        return norm

    def _agree(self, grad_norm: float) -> None:
        """Let all processes stop at the same step, for a signal or a value that is not finite in any of them.

        The only wait for the device in a step, at a moment when the device has nothing left to do but the update.
        Raises `LlavaStfError` for such a value.
        """
        losses = torch.stack([loss for _, loss in self._step_losses]).tolist()
        ids = [ids for ids, _ in self._step_losses]
        self._step_losses = []
        bad = [name for names, loss in zip(ids, losses, strict=True) if not math.isfinite(loss) for name in names]
        finite = math.isfinite(grad_norm) and all(map(math.isfinite, losses))
        flags = torch.tensor([not finite, self._step_end.asked], dtype=torch.int64, device=self.args.device)
        anywhere_bad, anywhere_terminated = self.accelerator.reduce(flags, reduction="sum").tolist()
        self.terminating = anywhere_terminated > 0
        if anywhere_bad:
            named = gather_object(bad) or gather_object([name for names in ids for name in names])
            step, loss = self.state.global_step + 1, sum(losses)
            raise LlavaStfError(
                f"the loss ({loss:.4g}) or its gradient (norm {grad_norm:.4g}) is not finite at step {step}, in the "
                f"samples {_listed(named)}: look at them or lower the learning rate, and go on with --resume; "
                f"{describe_newest(Path(self.args.output_dir))}"
            )


class _StepCallback(TrainerCallback):
    """Random numbers that depend on the step alone, lines of the log where a run can be cut, and signals."""

    def __init__(self, trainer: FinetuneTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.restart_clock()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Data loaders draw from the global generator, too, but not equally often before and after a resumption.
        entropy = np.random.SeedSequence((args.seed, state.global_step, args.process_index))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.terminating:
            control.should_save = control.should_training_stop = True
        # A checkpoint does not hold the losses since the last line of the log, so there are none.
        control.should_log |= control.should_save

    def on_save(self, *_: Any, **__: Any) -> None:
        self.trainer.restart_clock()


def _start_worker(initialise: Callable[[int], None] | None, worker: int) -> None:
    shield_worker()
    if initialise is not None:  # the Trainer gives a stream's workers none
        initialise(worker)


def _listed(names: list[str]) -> str:
    rest = len(names) - NAMED_SAMPLES
    return ", ".join(names[:NAMED_SAMPLES]) + (f" and {rest} more" if rest > 0 else "")
