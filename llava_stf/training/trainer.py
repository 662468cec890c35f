"""The transformers Trainer with a learning rate per part, safe losses, and samples per second in its log."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from llava_stf.errors import LlavaStfError
from llava_stf.training.config import FinetuneConfig
from llava_stf.training.optim import parameter_groups


class FinetuneTrainer(Trainer):
    """`Trainer` for a `FinetuneConfig`.

    Modifications:
        create_optimizer: AdamW over one parameter group per part of the model.
        compute_loss: a batch in which every label is masked has the loss 0, not 0/0.
        log: samples per second since the last line; stops at a loss that is not finite.
        _load_from_checkpoint: nothing, since the model handed in has the checkpoint's weights already. The Trainer's
            own would compare the public key names on disk with those in memory and skip what differs, silently.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, config: FinetuneConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.finetune_config = config
        self._logged_at, self._logged_step = time.perf_counter(), 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(
                self.model if model is None else model,
                self.finetune_config.learning_rates,
                weight_decay=self.finetune_config.weight_decay,
            )
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, self.finetune_config.adam_beta2), fused=True)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        count = kwargs.get("num_items_in_batch")
        if count is not None:
            kwargs["num_items_in_batch"] = torch.as_tensor(count).clamp(min=1)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        now, step = time.perf_counter(), self.state.global_step
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise LlavaStfError(f"the loss is {logs['loss']} at step {step}: lower the learning rate and resume")
            batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            logs["samples_per_second"] = round((step - self._logged_step) * batch / (now - self._logged_at), 1)
        self._logged_at, self._logged_step = now, step
        super().log(logs, start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        pass
