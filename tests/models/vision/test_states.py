"""Hidden states of a tower: which are given, which are kept, and by several threads at once."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForImageTextToText

from llava_stf.models.vision import states as module
from llava_stf.models.vision.states import select_hidden_states, tower_blocks


@pytest.fixture(scope="module")
def tower(stf_folder):
    return AutoModelForImageTextToText.from_pretrained(stf_folder).eval().model.vision_tower


@torch.no_grad()
@pytest.mark.parametrize("selective", [True, False])
def test_states_are_the_towers_own(monkeypatch, tower, selective):
    if selective and not module.SELECTIVE_CAPTURE:
        pytest.skip("this transformers cannot capture hidden states by index")
    monkeypatch.setattr(module, "SELECTIVE_CAPTURE", selective)
    pixels = torch.randn(1, 3, 56, 56)
    full = tower(pixels, output_hidden_states=True).hidden_states
    found = select_hidden_states(tower, pixels, [-2, 0])
    assert torch.equal(found[0], full[-2])
    assert torch.equal(found[1], full[0])


@torch.no_grad()
@pytest.mark.skipif(not module.SELECTIVE_CAPTURE, reason="this transformers cannot capture hidden states by index")
def test_only_selected_states_are_kept(tower):
    alive = []
    watch = [
        block.register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)) and None)
        for block in tower_blocks(tower)
    ]
    found = select_hidden_states(tower, torch.randn(1, 3, 56, 56), [-2, 0])
    for hook in watch:
        hook.remove()
    assert alive[0]() is None
    assert any(reference() is found[0] for reference in alive)


@torch.no_grad()
@pytest.mark.parametrize("selective", [True, False])
def test_threads_share_a_tower(monkeypatch, tower, selective):
    if selective and not module.SELECTIVE_CAPTURE:
        pytest.skip("this transformers cannot capture hidden states by index")
    monkeypatch.setattr(module, "SELECTIVE_CAPTURE", selective)
    pictures = torch.randn(60, 1, 3, 56, 56)

    @torch.no_grad()
    def states(pixels):
        return torch.stack(select_hidden_states(tower, pixels, [-2, 1, 0]))

    expected = [states(pixels) for pixels in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(states, pictures))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
