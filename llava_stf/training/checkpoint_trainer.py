"""A Trainer whose checkpoints appear whole or not at all, and are read again by any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from llava_stf.io.runs import PARTIAL, publish_checkpoint, reported_writing, write_options
from llava_stf.training.config import FinetuneConfig
from llava_stf.training.lora import save_model_config
from llava_stf.training.optimizer_file import load_optimizer, save_optimizer
from llava_stf.training.sharding import gathered, sharding


class CheckpointTrainer(Trainer):
    """`Trainer` with the checkpoints of a `FinetuneConfig`.

    Modifications:
        _save_checkpoint, _get_output_dir: checkpoints appear complete or not at all.
        save_model, _save_optimizer_and_scheduler, _load_optimizer_and_scheduler: checkpoints that are read again by any
            number of processes, sharded by FSDP2 or not.
        _save: a checkpoint of adapters has the model's config, so that `load_model` takes it as it does the result.
        _load_from_checkpoint: nothing, since the model handed in has the checkpoint's weights already. The Trainer's
            own would compare the public key names on disk with those in memory and skip what differs, silently.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, config: FinetuneConfig, **kwargs: Any) -> None:
        """`kwargs` are the `Trainer`'s."""
        super().__init__(**kwargs)
        self.finetune_config = config
        self._saving = False

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self._saving = True
        with reported_writing(name, output):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # for their random states, and shards
            if self.is_world_process_zero():
                write_options(output / PARTIAL / name, self.finetune_config.identity(self.args.world_size, sharding()))
                publish_checkpoint(output, name, keep=self.finetune_config.save_total_limit)
        self._saving = False

    def weights(self) -> dict[str, Any] | None:
        """The trained weights where they are sharded, whole in the first process; all have to call it."""
        if self.is_fsdp_enabled:
            return gathered(self.model, trained_only=self.finetune_config.lora_rank is not None)
        if self.is_deepspeed_enabled and self.model_wrapped is not self.model:  # else no step was taken
            return self.accelerator.get_state_dict(self.model_wrapped)
        return None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See the class."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        weights = self.weights()
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.is_fsdp_enabled or self.args.should_save:
            assert self.optimizer is not None
            save_optimizer(self.optimizer, self.model, Path(output_dir), sharded=self.is_fsdp_enabled)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.is_deepspeed_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None
        load_optimizer(self.optimizer, self.model, Path(checkpoint), sharded=self.is_fsdp_enabled)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.finetune_config.lora_rank is not None:
            save_model_config(self.accelerator.unwrap_model(self.model), Path(output_dir or self.args.output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, PARTIAL)) if self._saving else folder

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        pass
