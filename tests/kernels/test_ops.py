"""Every operation on Triton against plain torch in float64: values, every gradient, odd sizes and layouts."""

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from llava_stf_kernels import (
    fuse_blocks,
    fuse_windows,
    gather_windows,
    naive_fuse_blocks,
    naive_fuse_windows,
    naive_place_tokens,
    naive_pool_tokens,
    place_tokens,
    pool_tokens,
)

# Relative error of a whole tensor; the 16-bit formats have a precision of 2^-9 and 2^-12.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))

# batch, grid or patches, channels, outputs, states or window
BLOCKS = [(1, 1, 16, 16, 1), (3, 37, 60, 40, 2), (2, 9, 100, 33, 3), (17, 5, 24, 20, 8), (1, 4, 1024, 18, 2)]
WINDOWS = [(1, 4, 16, 16, 1), (3, 6, 60, 40, 2), (2, 6, 100, 33, 3), (17, 4, 24, 20, 4), (1, 2, 1024, 18, 2)]
POOLED = [(1, 4, 16, 1), (3, 6, 60, 2), (2, 6, 100, 3), (17, 4, 1024, 4)]


def ids(names):
    return lambda shape: "-".join(f"{name}{size}" for name, size in zip(names.split(), shape, strict=True))


def random(*shape, device, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()


def assert_near(found, expected, dtype):
    """Relative error of the whole tensor; NaN never passes."""
    assert found.shape == expected.shape
    assert found.dtype == dtype
    error = (found.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    assert error < TOLERANCES[dtype], f"relative error {error:.2e}"


def compare(operation, reference, inputs, dtype):
    """Value and the gradient of every input, on a random gradient of the output."""
    found = operation(*inputs)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = reference(*wide)
    assert_near(found, expected, dtype)
    upstream = random(*found.shape, device=found.device, dtype=dtype, seed=1).detach()
    grads = torch.autograd.grad(found, inputs, upstream)
    for grad, truth in zip(grads, torch.autograd.grad(expected, wide, upstream.double()), strict=True):
        assert_near(grad, truth, dtype)


@dtypes
@pytest.mark.parametrize("shape", BLOCKS, ids=ids("B N C O K"))
def test_fuse_blocks(device, poisoned, shape, dtype):
    batch, patches, channels, outputs, count = shape
    make = {"device": device, "dtype": dtype}
    states = [random(batch, patches, channels, seed=i, **make) for i in range(count)]
    weight = random(outputs, count * channels, seed=20, **make)
    compare(
        lambda weight, bias, *states: fuse_blocks(states, weight, bias, backend="triton"),
        lambda weight, bias, *states: naive_fuse_blocks(states, weight, bias),
        [weight, random(outputs, seed=21, **make), *states],
        dtype,
    )


@dtypes
@pytest.mark.parametrize("shape", WINDOWS, ids=ids("B G C O k"))
def test_fuse_windows(device, poisoned, shape, dtype):
    batch, grid, channels, outputs, window = shape
    make = {"device": device, "dtype": dtype}
    x = random(batch, grid**2, channels, **make)
    weight = random(outputs, channels * window**2, seed=20, **make)
    compare(
        lambda *inputs: fuse_windows(*inputs, window, backend="triton"),
        lambda *inputs: naive_fuse_windows(*inputs, window),
        [x, weight, random(outputs, seed=21, **make)],
        dtype,
    )


@dtypes
@pytest.mark.parametrize("shape", POOLED, ids=ids("B G C k"))
def test_pool_tokens(device, poisoned, shape, dtype):
    batch, grid, channels, window = shape
    compare(
        lambda x: pool_tokens(x, window, backend="triton"),
        lambda x: naive_pool_tokens(x, window),
        [random(batch, grid**2, channels, device=device, dtype=dtype)],
        dtype,
    )


@dtypes
@pytest.mark.parametrize("width", [1, 60, 1025])
@pytest.mark.parametrize("places", [(), (0, 3, 4, 14), tuple(range(15))], ids=["none", "some", "all"])
def test_place_tokens(device, poisoned, places, width, dtype):
    mask = torch.zeros(15, dtype=torch.bool, device=device)
    mask[list(places)] = True
    mask = mask.view(3, 5)
    embeddings, tokens = (random(*shape, width, device=device, dtype=dtype) for shape in ((3, 5), (len(places),)))
    found, expected = (
        operation(embeddings, tokens, mask, **options)
        for operation, options in ((place_tokens, {"backend": "triton"}), (naive_place_tokens, {}))
    )
    assert torch.equal(found, expected)
    upstream = random(3, 5, width, device=device, dtype=dtype, seed=1).detach()
    for grad, truth in zip(
        torch.autograd.grad(found, [embeddings, tokens], upstream),
        torch.autograd.grad(expected, [embeddings, tokens], upstream),
        strict=True,
    ):
        assert torch.equal(grad, truth)


@pytest.mark.parametrize("layout", ["channels first", "every second channel", "one state unlike the others"])
def test_inputs_need_not_be_contiguous(device, layout):
    make = {"device": device, "dtype": torch.float32}
    states = [random(2, 9, 20, seed=i, **make) for i in range(3)]
    if layout == "channels first":
        states = [state.transpose(1, 2).contiguous().transpose(1, 2) for state in states]
    elif layout == "every second channel":
        states = [torch.stack([state, state], -1).flatten(-2)[..., ::2] for state in states]
    else:
        states[1] = states[1].transpose(0, 1).contiguous().transpose(0, 1)
    weight = random(12, 60, **make).t().contiguous().t()
    expected = naive_fuse_blocks([state.double() for state in states], weight.double(), None)
    assert_near(fuse_blocks(states, weight, backend="triton"), expected, torch.float32)
    x, weight = states[1], weight[:, :20].contiguous()
    expected = naive_fuse_windows(x.double(), weight.double(), None, 1)
    assert_near(fuse_windows(x, weight, window=1, backend="triton"), expected, torch.float32)
    expected = naive_pool_tokens(x.double(), 3)
    assert_near(pool_tokens(x, 3, backend="triton"), expected, torch.float32)
    mask = torch.ones(9, 2, dtype=torch.bool, device=device).t()
    tokens = torch.stack([states[1].flatten(0, 1)] * 2, -1)[..., 0]
    assert torch.equal(place_tokens(states[1], tokens, mask, backend="triton"), states[1])


@pytest.mark.parametrize("special", [0, 1, 5])
def test_a_view_is_read_where_it_lies_and_nothing_around_it(device, poisoned, special):
    """As of a tower with that many special tokens: NaN there must not leak, and the view's gradient is the patches'."""
    make = {"device": device, "dtype": torch.float32}
    towers = [random(2, special + 16 + 3, 8, seed=i, **make).detach() for i in range(2)]
    for tower in towers:
        tower[:, :special] = tower[:, special + 16 :] = float("nan")
        tower.requires_grad_()
    views, weight, second = [tower[:, special:-3] for tower in towers], random(6, 16, **make), random(6, 32, **make)

    def run(backend):
        x, y = views
        return [
            fuse_blocks(views, weight, backend=backend),
            pool_tokens(x, 2, backend=backend),
            fuse_windows(y, second, window=2, backend=backend),
        ]

    results = [run(backend) for backend in ("triton", "torch")]
    inputs = [*views, *towers, weight, second]
    grads = [torch.autograd.grad(sum(y.square().sum() for y in outputs), inputs) for outputs in results]
    for found, expected in zip([*results[0], *grads[0]], [*results[1], *grads[1]], strict=True):
        assert_near(found, expected.double(), torch.float32)
    assert grads[0][0].shape == views[0].shape

    class Recorder(TorchDispatchMode):
        called = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.called += (function,)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Recorder() as recorder:
        fuse_blocks(views, weight, backend="triton")
        pool_tokens(views[0], 2, backend="triton")
    assert torch.ops.aten.clone.default not in recorder.called


@pytest.mark.parametrize("frozen", ["states", "weight", "bias"])
def test_frozen_inputs_get_no_gradient_and_the_others_do(device, frozen):
    make = {"device": device, "dtype": torch.float32}
    x, weight, bias = random(2, 16, 8, **make), random(6, 8, **make), random(6, **make)
    {"states": x, "weight": weight, "bias": bias}[frozen].requires_grad_(False)
    for fused, patches in (
        (fuse_blocks([x], weight, bias, backend="triton"), [x]),
        (fuse_windows(x, weight, bias, 1, backend="triton"), [x]),
    ):
        inputs = [tensor for tensor in (*patches, weight, bias) if tensor.requires_grad]
        truth = naive_fuse_blocks([x], weight, bias).square().sum()
        expected = torch.autograd.grad(truth, inputs)
        for grad, wanted in zip(torch.autograd.grad(fused.square().sum(), inputs), expected, strict=True):
            assert_near(grad, wanted.double(), torch.float32)


@pytest.mark.parametrize("blocks", [(16, 256, 16), (32, 32, 64)], ids=["wide tiles", "deep tiles"])
def test_other_tiles_give_the_same(device, monkeypatch, blocks):
    import triton

    from llava_stf_kernels.joined_linear.product import PRODUCT

    tiles = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), blocks, strict=True))
    monkeypatch.setattr(PRODUCT.tuner, "configs", [triton.Config(tiles, num_warps=4, num_stages=2)])
    monkeypatch.setattr(PRODUCT, "_best", {})
    make = {"device": device, "dtype": torch.float32}
    states, weight = [random(2, 20, 24, seed=i, **make) for i in range(2)], random(300, 48, seed=9, **make)
    expected = naive_fuse_blocks([state.double() for state in states], weight.double(), None)
    assert_near(fuse_blocks(states, weight, backend="triton"), expected, torch.float32)


def cases(device):
    make = {"device": device, "dtype": torch.float32}
    mask = torch.tensor([[True, False, True], [False, False, True]], device=device)
    return {
        "fuse_blocks": (
            [random(2, 10, 8, seed=i, **make)[:, 1:].detach().requires_grad_() for i in range(3)],
            random(12, 24, **make),
            random(12, **make),
        ),
        "pool_tokens": (random(2, 17, 8, **make)[:, 1:].detach().requires_grad_(), 2),
        "place_tokens": (random(2, 3, 8, **make), random(3, 8, **make), mask),
    }


@pytest.mark.parametrize("name", ["fuse_blocks", "pool_tokens", "place_tokens"])
def test_torch_accepts_the_operation(device, name):
    arguments = cases(device)[name]
    opcheck(getattr(torch.ops.llava_stf, name).default, arguments)
    if name == "fuse_blocks":
        opcheck(torch.ops.llava_stf.fuse_blocks.default, (*arguments[:2], None))


def test_torch_accepts_fuse_windows(device):
    """It is an operation on the gathered windows, with torch's own derivative of the gathering."""
    make = {"device": device, "dtype": torch.float32}
    arguments = [random(2, 16, 8, **make), random(12, 32, **make), random(12, **make)]
    opcheck(torch.ops.llava_stf.fuse_blocks.default, ([gather_windows(arguments[0], 2)], *arguments[1:]))

    def fused(x, weight, bias):
        return fuse_windows(x, weight, bias, 2, backend="triton")

    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(call(*arguments).square().sum(), arguments) for call in (compiled, fused)]
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_one_compiled_graph_holds_all_operations(device, backend):
    """From states to the LLM's input, forward and backward, without a graph break."""
    arguments = cases(device)
    states, weight, bias = arguments["fuse_blocks"]
    make = {"device": device, "dtype": torch.float32}
    x, second, second_bias = random(2, 16, 8, **make), random(12, 32, **make), random(12, **make)
    embeddings, mask = torch.zeros(2, 20, 8, device=device), torch.zeros(2, 20, dtype=torch.bool, device=device)
    mask[:, 1:8] = True

    def path(states, weight, x, second):
        blocks = fuse_blocks(states, weight, bias, backend=backend)[..., :8]
        windows = fuse_windows(x, second, second_bias, 2, backend=backend)[..., :8]
        pooled = pool_tokens(blocks, 3, backend=backend)
        tokens = torch.cat([pooled, windows, windows[:, :2]], 1).flatten(0, 1)
        return place_tokens(embeddings, tokens, mask, backend=backend)

    compiled = torch.compile(path, fullgraph=True, backend="aot_eager")
    inputs = [*states, weight, x, second]
    found, expected = compiled(states, weight, x, second), path(states, weight, x, second)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(y.square().sum(), inputs) for y in (found, expected)]
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_autocast_multiplies_in_its_dtype(device, backend):
    make = {"device": device, "dtype": torch.float32}
    states, weight = [random(2, 16, 8, **make)], random(6, 8, **make)
    with torch.autocast(device.type, torch.bfloat16):
        fused = fuse_blocks(states, weight, backend=backend)
        windows = fuse_windows(states[0], weight, window=1, backend=backend)
    assert fused.dtype == windows.dtype == torch.bfloat16
    (fused.float().square().sum() + windows.float().square().sum()).backward()
    assert weight.grad.dtype == torch.float32
    expected = torch.autograd.grad(2 * naive_fuse_blocks(states, weight, None).square().sum(), weight)[0]
    assert (weight.grad - expected).norm() / expected.norm() < 2e-2  # two roundings to bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_sizes_of_a_real_model_on_a_gpu(poisoned, batch, dtype):
    make = {"device": "cuda", "dtype": dtype}
    states = [random(batch, 577, 1024, seed=i, **make)[:, 1:].detach().requires_grad_() for i in range(8)]
    weight = (random(4096, 8192, **make).detach() / 90).requires_grad_()
    compare(
        lambda weight, bias, *states: fuse_blocks(states, weight, bias, backend="triton"),
        lambda weight, bias, *states: naive_fuse_blocks(states, weight, bias),
        [weight, random(4096, **make), *states],
        dtype,
    )
