"""TokenPacker's and MQT's projectors: against plain restatements, at every budget, counted, and what they refuse."""

import math

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llava_stf.analysis.counting import projector_flops
from llava_stf.errors import FusionError
from llava_stf.models.fusion.build import build_projector
from llava_stf.models.fusion.config import refuse_resampler
from llava_stf.models.fusion.mqt import grid_positions
from llava_stf.models.vision.layers import tokenpacker_layers

from ..llava_stf.test_config import config

KINDS = ("tokenpacker", "mqt")


def build(kind, windows=(2, 1, 4), **options):
    cfg = config(
        grid=4, blocks=6, width=8, fusion=kind, fusion_window=windows[0], fusion_windows=list(windows), **options
    )
    torch.manual_seed(0)
    projector = build_projector(cfg).double()
    for parameter in projector.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return cfg, projector


def states_of(cfg, images=2):
    return list(torch.randn(len(cfg.fusion_states), images, 16, 8, dtype=torch.double))


def attend(attention, query, keys, values):
    """One query [C] to keys and values [N, C], head by head."""
    q, k, v = attention.q_proj(query), attention.k_proj(keys), attention.v_proj(values)
    width = len(q) // attention.heads
    heads = []
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        weights = (k[:, part] @ q[part] / math.sqrt(width)).softmax(0)
        heads.append(weights @ v[:, part])
    return attention.out_proj(torch.cat(heads))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_tokenpacker_token_is_its_query_over_its_own_window(window):
    cfg, projector = build("tokenpacker")
    states = states_of(cfg)
    joined = torch.cat(states, dim=-1)
    keys = projector.key_norm(projector.key.layers(joined))
    values = projector.value_norm(projector.value.layers(joined))
    found = projector(states, window)
    side = 4 // window
    assert found.shape == (2, side**2, 32)
    for image in range(2):
        for row in range(side):
            for column in range(side):
                inside = [
                    (row * window + dy) * 4 + column * window + dx for dy in range(window) for dx in range(window)
                ]
                # Halving a side, or quartering it, samples between the two patches in the middle.
                middle = range(window // 2 - 1, window // 2 + 1) if window > 1 else range(1)
                near = [(row * window + dy) * 4 + column * window + dx for dy in middle for dx in middle]
                coarse = states[0][image, near].mean(0)
                query = projector.query_norm(projector.query(coarse))
                mixed = attend(projector.attention, query, keys[image, inside], values[image, inside])
                expected = projector.mlp.layers(mixed)
                torch.testing.assert_close(found[image, row * side + column], expected, atol=1e-5, rtol=1e-5)


def test_mqt_asks_its_first_queries_for_values_by_place_alone():
    cfg, projector = build("mqt")
    assert projector.queries.shape == (16, 8)  # the largest budget's
    (x,) = states_of(cfg)
    places = grid_positions(4, x)
    keys, values = projector.key_norm(places), projector.value_norm(x)
    everything = projector([x], 1)
    for token in range(16):
        query = projector.query_norm(projector.queries[token] + places[token])
        expected = projector.projection(attend(projector.attention, query, keys, values[1]))
        torch.testing.assert_close(everything[1, token], expected)
    for window, count in ((2, 4), (4, 1)):
        torch.testing.assert_close(projector([x], window), everything[:, :count])


def test_positions_tell_columns_and_rows_apart():
    places = grid_positions(3, torch.zeros(1, 8))
    assert places.shape == (9, 8)
    assert torch.equal(places[0, :4], places[3, :4])  # one column
    assert torch.equal(places[0, 4:], places[1, 4:])  # one row
    assert len({tuple(row.tolist()) for row in places}) == 9
    expected = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    assert places[1, :4].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_at_every_budget(kind):
    cfg, projector = build(kind)
    for window in (1, 2, 4):
        projector.zero_grad()
        projector(states_of(cfg), window).square().sum().backward()
        for name, parameter in projector.named_parameters():
            alone = window == 1 and kind == "tokenpacker"  # one key: where a query looks is no question
            if name == "attention.k_proj.bias" or (
                alone and name.startswith(("query", "key", "attention.q", "attention.k"))
            ):
                continue  # a bias of all keys moves all weights alike
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch(kind):
    cfg, projector = build(kind)
    states = states_of(cfg, images=3)
    together = projector(states, 2)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], projector([state[row : row + 1] for state in states], 2))


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_are_run(kind, window):
    cfg, projector = build(kind)
    states = [state.float() for state in states_of(cfg, images=1)]
    # torch counts no fused attention on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        projector.float()(states, window)
    assert projector_flops(cfg, (4 // window) ** 2) == counter.get_total_flops()


def test_levels_are_the_papers_and_at_the_same_depth_elsewhere():
    assert tokenpacker_layers(24) == [-2, 22, 16, 12]
    assert tokenpacker_layers(6) == [-2, 4, 3, 2]
    assert tokenpacker_layers(3) == [-2, 1]
    assert tokenpacker_layers(2) == [-2]


def test_what_a_projector_is_not_for_is_one_sentence():
    with pytest.raises(FusionError, match="fusion must be stf, pool, tokenpacker or mqt, found 'mean'"):
        config(fusion="mean")
    with pytest.raises(FusionError, match="MQT reads one state"):
        config(fusion="mqt", fusion_layers=[-2, 1])
    with pytest.raises(FusionError, match=r"The engine vllm knows .* this model has TokenPacker's\."):
        refuse_resampler(config(fusion="tokenpacker"), "The engine vllm")
    refuse_resampler(config(fusion="pool"), "The engine vllm")


def test_keys_of_equal_weight_are_means():
    """With keys that say nothing TokenPacker is the mean of its window's values."""
    cfg, projector = build("tokenpacker")
    projector.attention.k_proj.weight.data.zero_()
    states = states_of(cfg)
    values = projector.value_norm(projector.value.layers(torch.cat(states, dim=-1)))
    means = functional.avg_pool2d(values.transpose(1, 2).unflatten(-1, (4, 4)), 2).flatten(2).transpose(1, 2)
    expected = projector.mlp.layers(projector.attention.out_proj(projector.attention.v_proj(means)))
    torch.testing.assert_close(projector(states, 2), expected)
