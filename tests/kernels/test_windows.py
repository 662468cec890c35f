"""Where a patch goes in a window."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from llava_stf_kernels import gather_windows


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 2))
def test_windows_are_channel_major(side, window, channels, batch):
    grid = side * window
    x = torch.randn(batch, grid * grid, channels)
    tokens = gather_windows(x, window)
    assert tokens.shape == (batch, side * side, channels * window * window)
    image = x.transpose(1, 2).reshape(batch, channels, grid, grid)
    assert torch.equal(tokens, F.pixel_unshuffle(image, window).flatten(2).transpose(1, 2))
    for row in range(side):
        for column in range(side):
            for c in range(channels):
                dy, dx = window - 1, 0
                u = tokens[:, row * side + column, c * window * window + dy * window + dx]
                assert torch.equal(u, x[:, (row * window + dy) * grid + column * window + dx, c])


@pytest.mark.parametrize("patches", [25, 24, 15])
def test_no_patch_is_lost_silently(patches):
    with pytest.raises(ValueError, match=f"found {patches} patches"):
        gather_windows(torch.zeros(1, patches, 2), 2)
