"""Self-distillation: a LLaVA at all its vision tokens teaches itself to answer on fewer.

Teacher and student are one model but for the projector: the frozen vision tower and the LLM serve both, so memory is
that of one model. The student learns the teacher's distribution over each token of the answers and, optionally, image
tokens near the mean of the teacher's over each window. Answers need not be right, or a human's: `llava-stf data label`
lets the teacher write them.

Shapes: B rows, L ids, S squares (images, or their tiles), N = grid**2 teacher tokens of a square, H LLM width, V
vocabulary, A answer tokens in a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from llava_stf.models.fusion.budget import ImageSizes, resolve_window
from llava_stf.models.fusion.modeling import image_tokens_of
from llava_stf.models.fusion.tiled import whole_windows
from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.models.llava_stf.modeling_llava_stf import LlavaStfForConditionalGeneration
from llava_stf.models.vision.states import select_patch_states
from llava_stf.training.budgets import with_budget
from llava_stf.training.sharding import forward_of
from llava_stf.training.trainer import FinetuneTrainer
from llava_stf_kernels import place_tokens, pool_tokens


class Teacher:
    """What a LLaVA-STF was made from, out of its own parts and the projector that it had before.

    Args:
        student: the LLaVA-STF. LoRA adapters in its LLM are switched off by whoever calls.
        projector: the plain LLaVA's, on the student's first fusion layer, or a ViP-LLaVA's, on all of them joined.
    """

    def __init__(self, student: LlavaStfForConditionalGeneration, projector: nn.Module) -> None:
        self.student = student
        self.projector = projector.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Log probabilities of the answers' tokens, float32 [A, V], and the projector's tokens [S, N, H].

        `batch` has N placeholders for each square. The tokens are `None` for a batch of text alone.
        """
        model, inner = self.student, self.student.model
        embeddings = inner.get_input_embeddings()(batch["input_ids"])
        tokens = None
        if "pixel_values" in batch:
            layers = model.config.fusion_states
            layers = layers if hasattr(self.projector, "projector_layernorm") else layers[:1]
            states = torch.cat(select_patch_states(inner.vision_tower, batch["pixel_values"], layers), dim=-1)
            tokens = self.projector.to(states.device)(states)
            places = batch["input_ids"] == model.config.image_token_id
            images = torch.cat(inner.images_of(tokens, self.sizes_of(batch)))
            embeddings = place_tokens(embeddings, images.to(embeddings.dtype), places)
        mask = batch["attention_mask"]
        hidden = inner.language_model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state
        return answer_log_probabilities(model.lm_head(hidden[:, :-1][answers(batch["labels"])])), tokens

    def sizes_of(self, batch: dict[str, Any]) -> ImageSizes:
        """Sizes of the images of a batch."""
        inner = self.student.model
        return inner.sizes_of_images(batch["pixel_values"], **{name: batch.get(name) for name in inner.image_choices})


class DistillTrainer(FinetuneTrainer):
    """`FinetuneTrainer` whose loss is the distance to the teacher, per token of the answers.

    Modifications:
        compute_loss: KL divergence of the student's distribution from the teacher's, plus `feature_weight` times the
            mean squared difference of the image tokens, in place of the cross entropy with the labels.
    """

    def __init__(self, *args: Any, teacher_projector: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, compute_loss_func=self._distance, **kwargs)
        self._teach: Callable[..., Any] | None = None  # the teacher, once the model is sharded
        self._peft_model = self.model if self.finetune_config.lora_rank is not None else None
        self.teacher = Teacher(self.model.get_base_model() if self._peft_model else self.model, teacher_projector)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the teacher on all patches first, for `_distance`."""
        student = self.teacher.student
        wide = with_budget(student, inputs, self.step_budget, student.config.grid**2)
        without_adapters = self._peft_model.disable_adapter() if self._peft_model else contextlib.nullcontext()
        if self._teach is None:
            self._teach = forward_of(model, "teach", self.teacher)
        with self.accelerator.autocast(), without_adapters:
            self._teacher_outputs = self._teach(wide)
        self._sizes = self.teacher.sizes_of(wide) if "pixel_values" in wide else []
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _distance(self, outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        """Share of this batch in the mean over the `num_items_in_batch` answer tokens of an optimizer step."""
        target, teacher_tokens = self._teacher_outputs
        found = answer_log_probabilities(outputs.logits[:, :-1][answers(labels)])
        distance = F.kl_div(found, target, reduction="sum", log_target=True)
        weight = self.finetune_config.feature_weight
        if weight and teacher_tokens is not None and not self.filled:
            student = self.teacher.student
            window = resolve_window(student.config, self.step_budget)
            pooled = pool_tokens(whole_windows([teacher_tokens], window)[0], window)
            pooled = torch.cat(student.model.images_of(pooled, self._sizes))
            distance = distance + weight * len(found) * F.mse_loss(image_tokens_of(outputs).float(), pooled.float())
        return distance / num_items_in_batch


def answers(labels: Tensor) -> Tensor:
    """Where the next token belongs to an answer: bool [B, L - 1] for labels [B, L]."""
    return labels[:, 1:] != IGNORE_INDEX


def answer_log_probabilities(logits: Tensor) -> Tensor:
    """float32 [A, V]."""
    return F.log_softmax(logits.float(), dim=-1)
