"""DCLS kernels and layers against sums written out by hand, their positions, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.synapses import Dcls1d, Dcls2d, Dcls2dK1d, construct_1d, construct_2d

VERSIONS = ("v0", "v1", "max", "gauss")


def profile(version: str, p: float, sigma: float, size: int) -> list[float]:
    """One element's profile, tap by tap."""
    if version == "v0":
        below = math.floor(p)
        return [{below: 1 - (p - below), below + 1: p - below}.get(k, 0.0) for k in range(size)]
    width = {"v1": 1.0, "max": abs(sigma) + 1.0, "gauss": abs(sigma) + 0.27}[version]
    if version == "gauss":
        taps = [math.exp(-0.5 * ((k - p) / width) ** 2) for k in range(size)]
    else:
        taps = [max(width - abs(k - p), 0.0) for k in range(size)]
    return [tap / (sum(taps) + 1e-7) for tap in taps]


def elements(axes: int, version: str, *shape: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights, positions (also at borders, halves and whole numbers) and widths (also 0 and negative), float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    P = (torch.rand(axes, *shape, generator=generator, dtype=torch.float64) * 6 - 3).mul(2).round().div(2)
    P += torch.rand(P.shape, generator=generator, dtype=torch.float64).gt(0.5) * 0.21
    SIG = torch.randn(P.shape, generator=generator, dtype=torch.float64)
    SIG[0, 0] = 0
    return weight, P.clamp(-3, 3), SIG if version in ("max", "gauss") else None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [7, 6])
def test_a_kernel_is_the_sum_of_its_elements(version: str, size: int) -> None:
    weight, P, SIG = elements(1, version, 3, 2, 2)
    expected = torch.zeros(3, 2, size, dtype=torch.float64)
    for o, i, c in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(2)).tolist():
        sigma = 0.0 if SIG is None else float(SIG[0, o, i, c])
        taps = profile(version, float(P[0, o, i, c]) + size // 2, sigma, size)
        expected[o, i] += float(weight[o, i, c]) * torch.tensor(taps, dtype=torch.float64)
    torch.testing.assert_close(construct_1d(weight, P, SIG, size, version), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("version", VERSIONS)
def test_derivatives_are_those_of_the_formulas(version: str) -> None:
    weight, P, SIG = elements(1, version, 2, 2, 1)
    P = P + 0.1234  # off the kinks
    tensors = [x.requires_grad_() for x in (weight, P, *([] if SIG is None else [SIG + 0.3]))]

    def build(*given: Tensor) -> Tensor:
        return construct_1d(given[0], given[1], given[2] if len(given) > 2 else None, 9, version)

    assert torch.autograd.gradcheck(build, [x.detach().requires_grad_() for x in tensors])


@pytest.mark.parametrize(("version", "moves"), [("v0", True), ("v1", False), ("max", False), ("gauss", True)])
def test_what_a_whole_position_learns(version: str, moves: bool) -> None:
    """v1, and max without width, have no gradient there; v0 has that of its right side."""
    layer = Dcls1d(2, 2, 1, dilated_kernel_size=5, version=version)
    with torch.no_grad():
        layer.P.round_()
        layer.P.clamp_(-1, 1)
        if layer.SIG is not None:
            layer.SIG.zero_()
    layer.kernel().square().sum().backward() if version != "gauss" else layer.kernel()[..., 1:].sum().backward()
    assert layer.P.grad is not None
    assert bool(layer.P.grad.any()) == moves


def test_a_gauss_is_never_one_tap() -> None:
    weight, P = torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 1)
    taps = construct_1d(weight, P, torch.zeros(1, 1, 1, 1), 25, "gauss")[0, 0]
    torch.testing.assert_close(taps[11:14], torch.tensor([1.048e-3, 0.9979, 1.048e-3]), rtol=1e-3, atol=0)
    wide = construct_1d(weight, P, torch.full((1, 1, 1, 1), 12.0), 25, "gauss")[0, 0]
    torch.testing.assert_close(wide[[0, 12]], torch.tensor([0.0291, 0.0470]), rtol=2e-3, atol=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_axes_of_two_dimensions(version: str) -> None:
    """Official: P[0] is the row in v0 and the column elsewhere; row_col: always the row."""
    P = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    SIG = torch.zeros(2, 1, 1, 1) if version in ("max", "gauss") else None
    for order in ("official", "row_col"):
        kernel = construct_2d(torch.ones(1, 1, 1), P, SIG, (5, 5), version, order)[0, 0]  # type: ignore[arg-type]
        place = divmod(int(kernel.argmax()), 5)
        assert place == ((3, 1) if version == "v0" or order == "row_col" else (1, 3))
    assert kernel.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_a_layer_is_a_convolution_along_time(mode: str) -> None:
    layer = Dcls1d(4, 6, 2, stride=2, padding=2, dilated_kernel_size=5, groups=2, padding_mode=mode).double()
    x = torch.randn(11, 3, 4, dtype=torch.float64)
    twin = torch.nn.Conv1d(4, 6, 5, stride=2, padding=2, groups=2, padding_mode=mode).double()
    with torch.no_grad():
        twin.weight.copy_(layer.kernel())
        assert layer.bias is not None
        assert twin.bias is not None
        twin.bias.copy_(layer.bias)
    torch.testing.assert_close(layer(x), twin(x.permute(1, 2, 0)).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_layers_in_space_serve_every_step(mode: str) -> None:
    x = torch.randn(2, 3, 4, 6, 7)
    layer = Dcls2d(4, 2, 3, padding=(2, 1), dilated_kernel_size=(5, 3), groups=2, padding_mode=mode)
    expected = F.conv2d(
        F.pad(x[1], (1, 1, 2, 2), "constant" if mode == "zeros" else mode), layer.kernel(), layer.bias, groups=2
    )
    torch.testing.assert_close(layer(x)[1], expected)
    for flat, size in ((0, (5, 1)), (1, (1, 5))):
        flat_layer = Dcls2dK1d(4, 2, 1, dilated_kernel_size=5, flat_dim=flat)
        assert flat_layer.kernel().shape == (2, 4, *size)
        torch.testing.assert_close(flat_layer(x)[0], F.conv2d(x[0], flat_layer.kernel(), flat_layer.bias))


def test_starting_values_are_drawn_in_order() -> None:
    torch.manual_seed(3)
    layer = Dcls1d(3, 2, 2, dilated_kernel_size=3)
    torch.manual_seed(3)
    bound = 1 / math.sqrt(6)
    weight, bias = torch.empty(2, 3, 2).uniform_(-bound, bound), torch.empty(2).uniform_(-bound, bound)
    torch.testing.assert_close(layer.weight, weight)
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias, bias)
    torch.testing.assert_close(layer.P, torch.empty(1, 2, 3, 2).normal_(std=0.5).clamp(-1, 1))
    assert layer.SIG is not None
    assert bool((layer.SIG == 0.23).all())


def test_positions_are_clamped_and_rounded_by_axis() -> None:
    layer = Dcls2d(1, 1, 2, dilated_kernel_size=(5, 3))
    with torch.no_grad():
        layer.P.copy_(torch.tensor([[9.0, 0.5], [-9.0, 1.5]]).view(2, 1, 1, 2))
    layer.clamp_positions_()
    assert layer.P.flatten().tolist() == [2.0, 0.5, -1.0, 1.0]
    layer.round_positions_()
    assert layer.P.flatten().tolist() == [2.0, 0.0, -1.0, 1.0]  # a half goes to the even number
    assert layer.version == "max"
    assert layer.SIG is not None
    assert not layer.SIG.any()


@pytest.mark.parametrize("version", VERSIONS)
def test_widths_are_there_where_the_version_has_them(version: str) -> None:
    keys = Dcls1d(1, 1, 1, version=version, bias=False).state_dict().keys()
    assert keys == {"weight", "P", *(["SIG"] if version in ("max", "gauss") else [])}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"version": "v2"}, "expected one of v0, v1, max, gauss"),
        ({"groups": 3}, "multiples of groups"),
        ({"kernel_count": 0}, "kernel_count=0"),
        ({"padding_mode": "wrap"}, "zeros, reflect, replicate, circular"),
        ({"stride": 0}, "stride >= 1"),
    ],
)
def test_impossible_layers_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Dcls1d(**{"in_channels": 4, "out_channels": 4, "kernel_count": 1, "dilated_kernel_size": 3, **given})


def test_numbers_of_two_axes() -> None:
    with pytest.raises(ValueError, match=r"\(5,\) for stride, padding or taps; expected one number, or two"):
        Dcls2d(4, 4, 1, dilated_kernel_size=(5,))


def test_wrong_inputs_are_explained() -> None:
    layer = Dcls1d(4, 2, 1, dilated_kernel_size=5)
    with pytest.raises(ValueError, match=r"expected \[T, B, 4\]. Time is the first axis"):
        layer(torch.zeros(3, 4, 9))
    with pytest.raises(ValueError, match=r"got 3 steps, 3 with its padding, and its kernel has 5 taps"):
        layer(torch.zeros(3, 2, 4))
    with pytest.raises(ValueError, match="expected P and SIG"):
        construct_1d(torch.zeros(2, 2, 1), torch.zeros(1, 2, 2), None, 3, "v1")
    with pytest.raises(ValueError, match="needs SIG"):
        construct_1d(torch.zeros(2, 2, 1), torch.zeros(1, 2, 2, 1), None, 3, "gauss")
    with pytest.raises(ValueError, match="has no SIG"):
        Dcls1d(1, 1, 1, version="v1").set_sigma_(1.0)
