"""Products and norms that give the same bits however many threads share them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rsgeoseg.nn.steady import (
    PointwiseConv2d,
    SteadyConv2d,
    SteadyGroupNorm,
    SteadyLinear,
    draw_masks,
    steady_gelu,
    steady_linear,
    steady_softmax,
    use_steady_linears,
)

THREADS = (1, 2, 3, 4, 5, 6, 8, 12, 24, 96)


@pytest.fixture(autouse=True)
def _threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def over_threads(compute):
    """Compute with each number of threads; the results must be equal to the bit."""
    torch.set_num_threads(THREADS[0])
    with torch.inference_mode():
        first = compute()
        for threads in THREADS[1:]:
            torch.set_num_threads(threads)
            assert torch.equal(compute(), first), f"{threads} threads"
    return first


def channels_last(*shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("rows", "inner", "outputs"), [(300, 512, 40), (16384, 240, 40), (65536, 144, 24), (7, 3, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(rows, inner, outputs, bias):
    torch.manual_seed(0)
    layer = SteadyLinear(inner, outputs, bias=bias)
    x = torch.randn(rows, inner)
    ours = over_threads(lambda: layer(x))
    assert ours.shape == (rows, outputs)
    torch.testing.assert_close(ours, F.linear(x, layer.weight, layer.bias).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outputs", [16, 128, 10])
def test_linear_layers_of_few_rows(outputs):
    """Seven queries, or one prompt of nine tokens."""
    torch.manual_seed(0)
    layer = SteadyLinear(128, outputs)
    for rows in (*range(60), 99, 113, 225, 257):
        x = torch.randn(1, rows, 128)
        ours = over_threads(lambda x=x: layer(x))
        torch.testing.assert_close(ours, F.linear(x, layer.weight, layer.bias).detach(), rtol=1e-5, atol=1e-5)


def test_all_linear_layers_of_a_network_are_replaced_and_keep_their_tensors():
    network = nn.Sequential(nn.Linear(4, 3), nn.ModuleDict({"inner": nn.Linear(3, 2, bias=False)}))
    before = network.state_dict(keep_vars=True)
    use_steady_linears(network)
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert isinstance(network[0], SteadyLinear)
    assert isinstance(network[1]["inner"], SteadyLinear)


def test_linear_gradients_are_those_of_the_plain_layer():
    torch.manual_seed(0)
    weight, x = torch.randn(5, 8, requires_grad=True), torch.randn(3, 8)
    ours = torch.autograd.grad(steady_linear(x, weight).square().sum(), weight)[0]
    plain = torch.autograd.grad(F.linear(x, weight).square().sum(), weight)[0]
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(("inner", "outputs", "side"), [(1152, 192, 32), (672, 112, 64), (240, 40, 128), (128, 6, 64)])
def test_pointwise_convolutions(inner, outputs, side):
    torch.manual_seed(0)
    plain = nn.Conv2d(inner, outputs, 1)
    layer = PointwiseConv2d.of(plain)
    x = channels_last(1, inner, side, side)
    ours = over_threads(lambda: layer(x))
    torch.testing.assert_close(ours, plain(x).detach(), rtol=1e-4, atol=1e-5)
    assert layer.weight is plain.weight
    assert set(layer.state_dict()) == set(plain.state_dict())


def test_pointwise_convolution_trains_as_the_plain_one():
    plain = nn.Conv2d(8, 3, 1)
    layer, x = PointwiseConv2d.of(plain), torch.randn(2, 8, 4, 4)
    assert torch.equal(layer(x), plain(x))
    layer(x).sum().backward()
    assert plain.weight.grad is not None


@pytest.mark.parametrize("outputs", [10, 128])
def test_convolutions_of_small_maps(outputs):
    """Maps cut from the rows of several levels, as a pixel decoder gives them."""
    torch.manual_seed(0)
    plain = nn.Conv2d(128, outputs, 3, padding=1)
    layer = SteadyConv2d.of(plain)
    assert layer.weight is plain.weight
    for side in (1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 16, 17):
        rows = torch.randn(1, side * side + 5, 128)
        x = rows[:, : side * side].transpose(1, 2).reshape(1, 128, side, side)
        ours = over_threads(lambda x=x: layer(x))
        torch.testing.assert_close(ours, plain(x).detach(), rtol=1e-4, atol=1e-5)


def test_small_convolution_trains_as_the_plain_one():
    plain = nn.Conv2d(8, 3, 3, padding=1)
    layer, x = SteadyConv2d.of(plain), torch.randn(2, 8, 4, 4)
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("shape", [(2, 64, 96, 80), (1, 128, 128, 128), (1, 32, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm(shape, dtype):
    torch.manual_seed(0)
    norm = SteadyGroupNorm(32, shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (channels_last(*shape) * 3 + 10).to(dtype)
    ours = over_threads(lambda: norm(x))
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double())
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


def test_group_norm_of_a_constant_map_is_its_bias():
    norm = SteadyGroupNorm(2, 4)
    nn.init.constant_(norm.bias, 0.5)
    with torch.no_grad():
        ours = norm(torch.full((1, 4, 8, 8), 1000.0).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(ours, torch.full((1, 4, 8, 8), 0.5), rtol=0, atol=1e-2)


def test_group_norm_trains_as_the_plain_one():
    norm, plain = SteadyGroupNorm(4, 8), nn.GroupNorm(4, 8)
    x = channels_last(1, 8, 6, 6).requires_grad_()
    assert torch.equal(norm(x), plain(x))


@pytest.mark.parametrize("shape", [(16, 8, 10, 4096), (1, 8, 12, 336), (3, 8, 9, 400), (2, 8, 10, 21)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_over_rows(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = over_threads(lambda: steady_softmax(x))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), x.double().softmax(2), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 16, 128, 128), (3, 16, 48, 48), (1, 5, 9, 7), (2, 3, 150, 110), (0, 4, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gelu(shape, dtype, layout):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=layout)
    ours = over_threads(lambda: steady_gelu(x))
    assert ours.is_contiguous(memory_format=layout)
    torch.testing.assert_close(ours.double(), F.gelu(x.double()), rtol=2e-2, atol=1e-5)


def test_gelu_of_a_part_of_a_map():
    x = torch.randn(2, 6, 50, 60)[:, 1:4, ::2]
    ours = over_threads(lambda: steady_gelu(x))
    torch.testing.assert_close(ours, F.gelu(x))


@pytest.mark.parametrize("count", [1, 5, 9, 10, 11, 17, 64])
def test_masks_of_kernels(count):
    kernels, feature = torch.randn(count, 128), channels_last(1, 128, 64, 96)[0]
    ours = over_threads(lambda: draw_masks(kernels, feature))
    torch.testing.assert_close(ours, torch.einsum("pc,chw->phw", kernels, feature), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(draw_masks(kernels, feature.contiguous()), ours, rtol=1e-4, atol=1e-4)
