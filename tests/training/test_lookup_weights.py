"""First weights of the bundled model's language model: what its heads attend to before any training."""

import torch
from transformers import LlamaConfig

from llava_stf.training.lookup_weights import LOOKBACK, new_language_model


def test_first_heads_look_back():
    """Head h of the first layer reads the token h + 1 before, whatever the tokens are."""
    torch.manual_seed(0)
    model = new_language_model(
        LlamaConfig(vocab_size=768, hidden_size=192, intermediate_size=512, num_hidden_layers=2, num_attention_heads=6)
    )
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 768, (4, 40))
    weights = model(input_ids=ids, output_attentions=True).attentions[0].mean(0)
    for head in range(LOOKBACK):
        back = weights[head].diagonal(-(head + 1))[8:]
        assert back.mean() > 0.5
        assert (weights[head, -20:].argmax(-1) == torch.arange(20, 40) - head - 1).float().mean() > 0.9
