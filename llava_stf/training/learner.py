"""A LLaVA behind tower states that are given: its loss on rows of questions, and which are answered right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_stf.models.llava_stf.conversation import IGNORE_INDEX
from llava_stf.models.vision.layers import state_index
from llava_stf.training.drawn_batches import Batch, Encoder
from llava_stf.training.drawn_states import LAYERS
from llava_stf.training.rows import Rows, embed, logits_of, states_behind

HINTED = 0.5  # weight of the hints in the loss


class Learner(nn.Module):
    """A LLaVA's projector and language model behind a tower whose states are given."""

    def __init__(self, llava: Any, encoder: Encoder, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.dtype = dtype  # of the computation; weights are float32
        # Named as in transformers, so that `parameter_groups` knows it.
        self.multi_modal_projector = llava.model.multi_modal_projector
        self.language_model, self.lm_head = llava.model.language_model, llava.lm_head
        self.encoder = encoder
        depth = llava.config.vision_config.num_hidden_layers
        stored = [state_index(layer, depth) for layer in LAYERS]
        # Which of the given states a projector that fuses reads; none in a plain LLaVA.
        self.read = [stored.index(state_index(layer, depth)) for layer in getattr(llava.config, "fusion_states", ())]

    def image_tokens(self, states: Sequence[Tensor], window: int | None = None) -> Tensor:
        """States [B, N, C] of a tower's layers to tokens [B, M, H], in windows of this side or the model's default."""
        states = [state.to(self.dtype) for state in states]
        with torch.autocast("cpu", self.dtype, enabled=self.dtype == torch.bfloat16):
            if not self.read:
                return self.multi_modal_projector(states[0]).to(self.dtype)
            return self.multi_modal_projector([states[place] for place in self.read], window).to(self.dtype)

    def forward(self, image: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image tokens [B, M, H]: the loss, and whether each row is answered right, bool.

        The loss is that of all answers' tokens, and beside it that of the hints: two thirds of the layers say what is
        looked for among options, so that the last third finds its letter.
        """
        count = len(image)
        beginning = embed(self.language_model, self.encoder.beginning, self.dtype).expand(count, -1, -1)
        prefix = torch.cat([beginning, image], dim=1)
        x = torch.cat([prefix.flatten(0, 1), embed(self.language_model, batch.ids, self.dtype)])
        kept = torch.cat([torch.ones(count * prefix.shape[1], dtype=torch.bool), batch.ids != self.encoder.pad])
        rows = Rows(self.language_model.config, count, prefix.shape[1], batch.groups, kept, self.dtype)
        depth = len(self.language_model.layers)
        between, last = states_behind(self.language_model, x, rows, [2 * depth // 3, depth])
        (learned,) = torch.nonzero(batch.answers != IGNORE_INDEX, as_tuple=True)
        begun = count * prefix.shape[1]
        logits = logits_of(self.language_model, self.lm_head, last[begun + learned - 1])
        target = batch.ids[learned]
        loss = F.cross_entropy(logits, target)
        if batch.hints.numel():
            before, wanted = batch.hints
            logits_between = logits_of(self.language_model, self.lm_head, between[begun + before])
            loss = loss + HINTED * F.cross_entropy(logits_between, wanted)
        wrong = torch.zeros(len(batch.kinds), dtype=torch.int64)
        wrong.index_add_(0, batch.answers[learned], (logits.argmax(-1) != target).long())
        return loss, wrong == 0
