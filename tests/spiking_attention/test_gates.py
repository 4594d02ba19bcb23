"""Gate and square in one kernel each are torch's operators; here through the loom's kernels for the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.kernels import backends
from spikeloom.kernels.watch import watching
from spikeloom.spiking_attention import ChannelMix, gates


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "fuses", lambda *tensors: True)


def random(seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(5, 2, 12, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2**-6}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", ["gated", "squared"])
def test_one_kernel_is_the_operators(name: str, dtype: torch.dtype, fused: None, monkeypatch: Any) -> None:
    given = [random(seed, dtype) for seed in range(2 if name == "gated" else 1)]
    made = getattr(gates, name)(*given)
    assert (made.shape, made.dtype) == (given[0].shape, dtype)
    grad = torch.randn(made.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    found = [made, *torch.autograd.grad(made, given, grad)]
    monkeypatch.setattr(gates, "fuses", lambda *tensors: False)
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = getattr(gates, name)(*exact)
    for one, other in zip(found, [expected, *torch.autograd.grad(expected, exact, grad.double())], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] / 8)


def test_a_square_under_autocast_is_rounded_as_by_the_product_that_reads_it(fused: None, monkeypatch: Any) -> None:
    """torch squares in float32 there, and the next product takes it as bfloat16: the same bits."""
    x = random(1, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        one = gates.squared(x)
    assert torch.equal(one, torch.relu(x).float().square().bfloat16())


class Gpu(torch.Tensor):
    is_cuda = True


def test_what_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(3, 2, 4)
    assert not gates.fuses(x, x)  # on a CPU

    def asked(*tensors: Tensor) -> bool:
        return gates.fuses(*(t.as_subclass(Gpu) for t in tensors))

    assert not asked(x)  # a subclass
    monkeypatch.setattr(gates, "is_plain", lambda t: True)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    assert asked(x)
    assert asked(x.bfloat16(), x.bfloat16())
    for wrong in ((x.double(),), (x, x[:2]), (x, x.bfloat16()), (x[:0],), (x, x.transpose(0, 1)), (x[:, :1],)):
        assert not asked(*wrong)
    with watching(object()):  # type: ignore[arg-type]
        assert not asked(x)
    monkeypatch.setattr(gates, "dispatched", lambda: True)
    assert not asked(x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mixer_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = ChannelMix(64).cuda()
    x = torch.randn(70, 3, 64, device="cuda", requires_grad=True)
    found, asked, fuses = [], [], gates.fuses
    for wanted in (True, False):
        monkeypatch.setattr(gates, "fuses", lambda *given, w=wanted: asked.append(w and fuses(*given)) or asked[-1])
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            y = net(x)
        found.append([y.float(), *torch.autograd.grad(y.float().square().mean(), [x, *net.parameters()])])
    for one, other in zip(*found, strict=True):
        assert ((one - other).norm() / other.norm()).item() < (1e-5 if dtype == torch.float32 else 0.02)
    assert asked == [True] * 2 + [False] * 2
