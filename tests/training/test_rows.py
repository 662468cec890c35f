"""Rows of questions behind one beginning: the same logits as each gives alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava_stf.training.rows import STEP, Rows, embed, last_states, logits_of

BATCH = 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(("prefix", "groups"), [(5, [(3, 4), (1, 7)]), (0, [(1, 7)])])
@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.03), (torch.float32, 1e-4)])
def test_a_row_is_computed_as_if_it_were_alone(model, prefix, groups, dtype, close):
    beginning = torch.randint(0, 100, (BATCH, prefix))
    blocks = [torch.randint(0, 100, (BATCH, rows, length)) for rows, length in groups]
    ids = torch.cat([beginning.flatten(), *(block.flatten() for block in blocks)])
    lengths = {length: min(length, 3) for _, length in groups}  # what is behind them is padding
    blocks_kept = [(torch.arange(length) < lengths[length]).repeat(BATCH * rows) for rows, length in groups]
    kept = torch.cat([torch.ones(BATCH * prefix, dtype=torch.bool), *blocks_kept])
    rows = Rows(model.config, BATCH, prefix, groups, kept, dtype)
    states = last_states(model.model, embed(model.model, ids, dtype), rows)
    logits = logits_of(model.model, model.lm_head, states)
    at = BATCH * prefix
    for block in blocks:
        for image in range(BATCH):
            for row in block[image]:
                length = lengths[len(row)]
                alone = model(input_ids=torch.cat([beginning[image], row[:length]])[None]).logits[0, prefix:]
                torch.testing.assert_close(
                    logits[at : at + length], alone, atol=close * alone.abs().max().item(), rtol=0
                )
                at += len(row)


def test_every_weight_learns(model):
    ids = torch.randint(0, 100, (BATCH * 3 + BATCH * 2 * 4,))
    rows = Rows(model.config, BATCH, 3, [(2, 4)], torch.ones(len(ids), dtype=torch.bool), torch.bfloat16)
    states = last_states(model.model, embed(model.model, ids, torch.bfloat16), rows)
    logits_of(model.model, model.lm_head, states).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("real", [1, 100, STEP, STEP + 1])
def test_products_have_few_sizes_where_padding_allows(model, real):
    rows = Rows(model.config, 1, 0, [(1, 3 * STEP)], torch.arange(3 * STEP) < real, torch.float32)
    assert len(rows.kept) == (STEP if real <= STEP else 2 * STEP)
    assert set(range(real)) <= set(rows.kept.tolist())
