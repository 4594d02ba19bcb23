"""The loss of tokens from logits as they lie: the CUDA kernels on the CPU, on a GPU, and through nvcc."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.kernels import emulated_warps
from torch import Tensor

from spikeloom.kernels import backends
from spikeloom.kernels.token_loss import fused, takes, token_loss
from spikeloom.models import language_loss

plain = import_module("spikeloom.models.token_loss")
T, B = 3, 2
PENALTY = 0.3
SIZES = (1, 7, 8, 61, 256, 519)
"""V: fewer than a vector, one, a rest, as many as threads have, more."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


class OnCpu(emulated_warps.OnCpu):
    kernels = ("token_loss", "token_loss_gradient")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> Iterator[None]:
    """Both kernels on the CPU, with two warps a row; what they leave unwritten is NaN."""
    monkeypatch.setattr(fused, "Kernel", OnCpu)
    monkeypatch.setattr(fused, "_THREADS", 64)
    for cached in (fused._kernel, fused.source):
        cached.cache_clear()
    yield
    for cached in (fused._kernel, fused.source):
        cached.cache_clear()


def logits_of(V: int, dtype: torch.dtype, gap: int = 0, size: float = 4.0) -> Tensor:
    """Logits `[T, B, V]` in rows V + gap apart; in half precision the largest is often there several times."""
    generator = torch.Generator().manual_seed(V)
    wide = (size * torch.randn(T, B, V + gap, generator=generator)).to(dtype)
    return wide[..., :V]


def targets_of(V: int, device: str = "cpu") -> Tensor:
    found = torch.randint(V, (T, B), generator=torch.Generator().manual_seed(1))
    found[1, 1] = fused.IGNORED
    return found.to(device)


def both(logits: Tensor, targets: Tensor, penalty: float, factor: float = 1.0) -> tuple[Tensor, ...]:
    """Loss and gradient of the kernels, then of torch's operators in double precision."""
    leaf = logits.detach().requires_grad_()
    found = token_loss(leaf, targets, penalty)
    (slope,) = torch.autograd.grad(factor * found, leaf)
    exact = logits.detach().double().cpu().requires_grad_()
    expected = language_loss(exact, targets.cpu(), penalty)
    (wanted,) = torch.autograd.grad(factor * expected, exact)
    assert (found.dtype, slope.dtype) == (torch.float32, logits.dtype)
    assert slope.shape == logits.shape
    return found.detach().cpu().double(), slope.cpu().double(), expected.detach(), wanted


def agree(logits: Tensor, targets: Tensor, penalty: float = PENALTY, factor: float = 1.0) -> None:
    loss, slope, expected, wanted = both(logits, targets, penalty, factor)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    limit = ROUNDING[logits.dtype]
    torch.testing.assert_close(slope, wanted, rtol=2 * limit, atol=limit * wanted.abs().max().item() / 100)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("V", SIZES)
def test_it_is_torchs(emulated: None, V: int, dtype: torch.dtype) -> None:
    agree(logits_of(V, dtype), targets_of(V))


@pytest.mark.parametrize("gap", [3, 11])
def test_rows_that_lie_apart(emulated: None, gap: int) -> None:
    """Vectors where addresses allow, and zeros between the gradient's rows."""
    logits = logits_of(61, torch.bfloat16, gap)
    agree(logits, targets_of(61))
    leaf = logits.detach().requires_grad_()
    (slope,) = torch.autograd.grad(token_loss(leaf, targets_of(61), PENALTY), leaf)
    assert slope.stride() == logits.stride()
    between = slope.as_strided((T * B, 61 + gap), (61 + gap, 1))[:, 61:]
    assert torch.equal(between, torch.zeros_like(between))


def test_one_text_and_one_token(emulated: None) -> None:
    logits, targets = logits_of(61, torch.bfloat16, 3), targets_of(61)
    agree(logits[:, :1], targets[:, :1].contiguous())
    agree(logits[:1], targets[:1])
    agree(logits[2:, 1:], targets[2:, 1:])


def test_a_factor_scales_the_loss_alone(emulated: None) -> None:
    agree(logits_of(61, torch.float32), targets_of(61), factor=10.0)
    agree(logits_of(61, torch.float32), targets_of(61), penalty=0.0, factor=-3.0)


def test_the_first_of_equal_largest_logits_is_pushed(emulated: None) -> None:
    logits = torch.zeros(T, B, 300)
    logits[..., [70, 71, 299]] = 5.0
    leaf = logits.requires_grad_()
    (with_penalty,) = torch.autograd.grad(token_loss(leaf, targets_of(300), PENALTY), leaf)
    (without,) = torch.autograd.grad(token_loss(leaf, targets_of(300), 0.0), leaf)
    more = with_penalty - without
    assert bool((more[..., 70] > 0.2).all())
    more[..., 70] = 0
    assert not more.any()


@pytest.mark.parametrize("size", [80.0, 1e4])
def test_large_logits(emulated: None, size: float) -> None:
    logits = logits_of(61, torch.float32, size=size)
    loss, slope, expected, wanted = both(logits, targets_of(61), 0.0)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-6)


def test_classes_that_are_ruled_out(emulated: None) -> None:
    """Logits of minus infinity, whole vectors of them too, have no share and no gradient."""
    logits = logits_of(300, torch.bfloat16)
    logits[..., 3:290] = -math.inf
    agree(logits, targets_of(3))


def test_what_is_not_finite_shows(emulated: None) -> None:
    targets = targets_of(61)
    for bad in (math.nan, math.inf):
        logits = logits_of(61, torch.float32).clone()
        logits[0, 0, 40] = bad
        assert token_loss(logits, targets, PENALTY).isnan()
    for wrong in (61, -1):
        targets[0, 0] = wrong
        leaf = logits_of(61, torch.float32).requires_grad_()
        loss = token_loss(leaf, targets, PENALTY)
        assert loss.isnan()
        assert torch.autograd.grad(loss, leaf)[0][0, 0].isnan().all()
    assert token_loss(logits_of(61, torch.float32), torch.full((T, B), fused.IGNORED), PENALTY).isnan()


def test_whole_numbers_of_another_type(emulated: None) -> None:
    logits, targets = logits_of(61, torch.float32), targets_of(61)
    assert torch.equal(token_loss(logits, targets.int(), 0.0), token_loss(logits, targets, 0.0))


def test_nothing_else_is_written_or_recorded(emulated: None) -> None:
    logits = logits_of(61, torch.bfloat16, 3).clone()
    before, leaf = logits.clone(), logits.requires_grad_()
    token_loss(leaf, targets_of(61), PENALTY).backward()
    assert torch.equal(leaf.detach(), before)
    assert not token_loss(before, targets_of(61), PENALTY).requires_grad
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(token_loss(leaf, targets_of(61), PENALTY), leaf, create_graph=True)


class Gpu(torch.Tensor):
    is_cuda = True


def test_what_the_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = logits_of(61, torch.bfloat16, 3), targets_of(61)
    assert not takes(logits, targets)  # on a CPU

    def asked(logits: Tensor, targets: Tensor = targets) -> bool:
        return takes(logits.as_subclass(Gpu), targets)

    assert not asked(logits)  # a subclass
    monkeypatch.setattr(fused, "is_plain", lambda t: True)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    for same in (logits, logits.contiguous(), logits.float(), logits[:, :1], logits[:1], logits[::2, :1]):
        assert asked(same)
    assert not asked(logits.double())
    assert not asked(logits[:0])
    assert not asked(logits[..., ::2])
    assert not asked(logits[::2])  # rows at two distances
    assert not asked(logits.transpose(0, 1))
    assert not asked(logits[:1].expand(T, B, 61))
    monkeypatch.setattr(fused, "dispatched", lambda: True)
    assert not asked(logits)


def test_the_loss_asks(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = logits_of(61, torch.bfloat16), targets_of(61)
    expected = language_loss(logits, targets)
    assert expected.dtype == torch.float32
    assert torch.equal(expected, language_loss(logits.float(), targets))
    monkeypatch.setattr(plain, "takes", lambda *given: True)
    torch.testing.assert_close(language_loss(logits, targets), expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"expected logits \[T, B, V\]"):
        language_loss(logits[0], targets)


@pytest.mark.skipif(emulated_warps.NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("vector", [1, 8])
def test_the_source_compiles_without_spilling(tmp_path: Path, vector: int) -> None:
    said = emulated_warps.compiled(fused.source(torch.bfloat16, vector), tmp_path)
    assert re.findall(r"(\d+) bytes spill", said)
    assert set(re.findall(r"(\d+) bytes spill", said)) == {"0"}


def on_gpu(V: int, dtype: torch.dtype, gap: int) -> Tensor:
    wide: Any = torch.randn(64, 4, V + gap, generator=torch.Generator().manual_seed(0))
    return (4 * wide).to("cuda", dtype)[..., :V]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("V", "gap"), [(50277, 27), (50277, 0), (6064, 0), (77, 51)], ids=str)
def test_it_is_torchs_on_a_gpu(V: int, gap: int, dtype: torch.dtype) -> None:
    logits = on_gpu(V, dtype, gap)
    targets = torch.randint(V, (64, 4), generator=torch.Generator().manual_seed(1)).cuda()
    targets[::5] = fused.IGNORED
    assert takes(logits, targets)
    agree(logits, targets)
