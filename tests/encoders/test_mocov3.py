"""The MoCo v3 baseline: its loss, what is frozen, and that it learns."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from llava_stf.encoders.objectives.mocov3 import MoCoV3, MoCoV3Options


@pytest.fixture
def model():
    """A baseline on 8-pixel images in 4 patches."""
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    return MoCoV3(ViTModel(vit, add_pooling_layer=False), MoCoV3Options(hidden=16, out=8))


def test_the_loss_is_the_papers_and_symmetric(model):
    view1, view2 = torch.rand(2, 6, 3, 8, 8)
    loss = model(view1=view1, view2=view2)["loss"]
    torch.testing.assert_close(loss, model(view1=view2, view2=view1)["loss"])
    queries = [torch.nn.functional.normalize(model.query(view), dim=1) for view in (view1, view2)]
    keys = [torch.nn.functional.normalize(model.key(view), dim=1) for view in (view2, view1)]
    expected = sum(
        -torch.diagonal((query @ key.T / 0.2).softmax(dim=1)).log().mean()
        for query, key in zip(queries, keys, strict=True)
    )
    torch.testing.assert_close(loss, 2 * 0.2 * expected)


def test_a_few_steps_lower_the_loss_and_leave_the_patch_projection(model):
    patches = model.encoder.embeddings.patch_embeddings.projection.weight.clone()
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-3)
    images = torch.rand(6, 3, 8, 8)
    losses = []
    for _ in range(20):
        loss = model(view1=images, view2=images + 0.01)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(model.encoder.embeddings.patch_embeddings.projection.weight, patches)
