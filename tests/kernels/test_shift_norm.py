"""Sum, normalisation and token shift in one pass: the CUDA kernels on the CPU, on a GPU, and through nvcc."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.kernels import emulated_warps
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels import backends
from spikeloom.kernels.shift_norm import Added, fused, shift_norm, takes
from spikeloom.kernels.watch import watching

EPS = 1e-5
SIZES = [(1, 1, 4), (9, 2, 36), (7, 3, 132), (21, 1, 256)]
"""T, B, C: one token, a warp of which a part idles, two warps, of which one has a single thread, whole warps."""
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


class OnCpu(emulated_warps.OnCpu):
    kernels = ("shift_norm", "shift_norm_gradient")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> Iterator[None]:
    """Both kernels on the CPU, in runs of four tokens or more; what they leave unwritten is NaN."""
    monkeypatch.setattr(fused, "Kernel", OnCpu)
    monkeypatch.setattr(fused, "_processors", lambda device: 1)
    fused._kernel.cache_clear()
    yield
    fused._kernel.cache_clear()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(
    size: tuple[int, int, int], mixes: int, added: torch.dtype | None, drops: bool, device: str = "cpu"
) -> tuple[list[Tensor], Tensor | None]:
    """x, what is added, weight, bias and mixing weights; and the mask."""
    C = size[2]
    leaves = [random(*size, seed=1) + 0.5]
    if added is not None:
        leaves.append((random(*size, seed=2) > 0.3).to(added))
    leaves += [1 + 0.2 * random(C, seed=3), 0.3 * random(C, seed=4)]
    leaves += [0.5 + 0.3 * random(C, seed=5 + j) for j in range(mixes)]
    kept = (random(*size, seed=9) > -1).to(torch.uint8).to(device) if drops else None
    return [t.to(device).requires_grad_() for t in leaves], kept


def apart(leaves: Sequence[Tensor], mixes: int, kept: Tensor | None) -> list[Tensor]:
    """One after another: the stream, and what is made of it."""
    x, *rest = leaves
    weight, bias, *ms = rest[-2 - mixes :]
    z = x + rest[0].to(x.dtype) if len(rest) > 2 + mixes else x
    if kept is not None:
        z = z * kept / 0.75
    y = F.layer_norm(z, (z.shape[2],), weight, bias, EPS)
    before = torch.cat([torch.zeros_like(y[:1]), y[:-1]])
    return [z, *([m * y + (1 - m) * before for m in ms] or [y])]


def at_once(leaves: Sequence[Tensor], mixes: int, kept: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    x, *rest = leaves
    weight, bias, *ms = rest[-2 - mixes :]
    added = Added(rest[0], kept, 1 / 0.75 if kept is not None else 1.0) if len(rest) > 2 + mixes else None
    return list(shift_norm(x, added, weight, bias, EPS, ms, dtype))


def slopes(results: Sequence[Tensor], leaves: Sequence[Tensor], used: Sequence[bool]) -> list[Tensor]:
    """Gradients where only some of the results are used."""
    total = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    for seed, (result, use) in enumerate(zip(results, used, strict=True)):
        if use:
            given = random(*result.shape, seed=20 + seed).bfloat16().double().to(result.device)  # exact in every type
            total = total + (result.double() * given).sum()
    return list(torch.autograd.grad(total, leaves))


def agree(leaves: list[Tensor], mixes: int, kept: Tensor | None, dtype: torch.dtype, used: Sequence[bool]) -> None:
    """Values and gradients, against one after another in double precision."""
    exact = [t.detach().double().requires_grad_() for t in leaves]
    found, expected = at_once(leaves, mixes, kept, dtype), apart(exact, mixes, kept)
    assert [t.dtype for t in found] == [torch.float32] + [dtype] * max(mixes, 1)
    limits = [2e-6] + [TOLERANCE[dtype]] * max(mixes, 1)
    for one, other, limit in zip(found, expected, limits, strict=True):
        assert ((one.double() - other).abs().max() <= limit * max(1.0, other.abs().max().item())).item()
    for leaf, one, other in zip(leaves, slopes(found, leaves, used), slopes(expected, exact, used), strict=True):
        assert one.dtype == leaf.dtype
        limit = TOLERANCE[torch.float32 if leaf.dtype == torch.float32 else leaf.dtype] * max(1, other.abs().max())
        assert bool(((one.double() - other).abs().max() <= limit).item())


@pytest.mark.parametrize("mixes", [0, 2, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_one_after_another(emulated: None, size: tuple[int, int, int], mixes: int) -> None:
    leaves, kept = case(size, mixes, torch.float32, drops=True)
    agree(leaves, mixes, kept, torch.float32, [True] * (1 + max(mixes, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_what_is_made_and_added(emulated: None, dtype: torch.dtype) -> None:
    for mixes in (0, 3):
        leaves, kept = case((9, 2, 36), mixes, dtype, drops=False)
        agree(leaves, mixes, kept, dtype, [True] * (1 + max(mixes, 1)))


def test_nothing_added_and_nothing_dropped(emulated: None) -> None:
    for drops, added in ((False, None), (False, torch.float32)):
        leaves, kept = case((9, 2, 36), 2, added, drops)
        agree(leaves, 2, kept, torch.float32, [True] * 3)


@pytest.mark.parametrize("used", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_results_that_nobody_uses(emulated: None, used: tuple[bool, ...]) -> None:
    leaves, kept = case((9, 2, 36), 2, torch.float32, drops=True)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    found = torch.autograd.grad(
        at_once(leaves, 2, kept, torch.float32)[used.index(True)].sum(), leaves, allow_unused=True
    )
    wanted = torch.autograd.grad(apart(exact, 2, kept)[used.index(True)].sum(), exact, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        other = torch.zeros_like(one, dtype=torch.float64) if other is None else other
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-5)


def test_the_cut_changes_nothing(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, kept = case((21, 2, 36), 3, torch.float32, drops=True)
    expected = at_once(leaves, 3, kept, torch.float32)
    wanted = slopes(expected, leaves, [True] * 4)
    for length in (1, 5, 21):
        monkeypatch.setattr(fused, "cut", lambda T, B, p, n=length: (n, -(-T // n)))
        found = at_once(leaves, 3, kept, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        for one, other in zip(slopes(found, leaves, [True] * 4), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_layouts_and_frozen_parameters(emulated: None) -> None:
    leaves, kept = case((9, 2, 36), 2, torch.float32, drops=True)
    expected = at_once(leaves, 2, kept, torch.float32)
    with torch.no_grad():
        first = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in leaves[:2]]
        assert kept is not None
        found = at_once([*first, *leaves[2:]], 2, kept.transpose(0, 1).contiguous().transpose(0, 1), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not any(t.requires_grad for t in found)
    frozen = [leaves[0], *(t.detach() for t in leaves[1:])]
    (slope,) = torch.autograd.grad(at_once(frozen, 2, kept, torch.float32)[1].sum(), frozen[0])
    assert torch.equal(slope, torch.autograd.grad(expected[1].sum(), leaves[0], retain_graph=True)[0])
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(expected[1].sum(), leaves[0], create_graph=True)
    with pytest.raises(ValueError, match="at most 3"):
        shift_norm(leaves[0], None, leaves[2], leaves[3], EPS, leaves[2:3] * 4, torch.float32)


def test_what_does_not_fit_is_refused(emulated: None) -> None:
    (x, values, *params), kept = case((9, 2, 36), 0, torch.float32, drops=True)
    assert kept is not None
    for added in (Added(values[:1]), Added(values.double()), Added(values, kept[:1]), Added(values, kept.bool())):
        with pytest.raises(ValueError, match=r"shift_norm got Added.* for x \[9, 2, 36\].* expected that shape"):
            shift_norm(x, added, params[0], params[1], EPS, (), torch.float32)


def test_how_texts_are_cut() -> None:
    assert fused.cut(1024, 12, 132) == (16, 64)
    assert fused.cut(3, 1, 132) == (4, 1)
    for T, B in ((1, 1), (1000, 7), (64, 10**4), (10**5, 1)):
        length, runs = fused.cut(T, B, 132)
        assert (runs - 1) * length < T <= runs * length


class Gpu(torch.Tensor):
    is_cuda = True


def test_what_the_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    x, p = torch.zeros(5, 2, 8), torch.zeros(8)
    assert not takes(x, p)  # on a CPU

    def asked(x: Tensor, *params: Tensor | None) -> bool:
        return takes(x.as_subclass(Gpu), *params)

    assert not asked(x, p)  # a subclass
    monkeypatch.setattr(fused, "is_plain", lambda t: True)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    assert asked(x, p, p)
    assert asked(x.transpose(0, 1), p)
    for wrong in (x.double(), x.bfloat16(), x[0], x[:0], x[..., :6], torch.zeros(1, 1, 4100)):
        assert not asked(wrong, torch.zeros(wrong.shape[-1]))
    for param in (None, p.double(), p[:4], torch.zeros(9)[1:], torch.zeros(16)[::2]):
        assert not asked(x, p, param)
    with watching(object()):  # type: ignore[arg-type]
        assert not asked(x, p)
    monkeypatch.setattr(fused, "dispatched", lambda: True)
    assert not asked(x, p)


@pytest.mark.skipif(emulated_warps.NVCC is None, reason="no nvcc")
@pytest.mark.parametrize(("mixes", "threads"), [(0, 192), (2, 192), (3, 192), (3, 1024)], ids=str)
def test_the_source_compiles_and_hardly_spills(tmp_path: Path, mixes: int, threads: int) -> None:
    said = emulated_warps.compiled(fused.source(torch.bfloat16, torch.bfloat16, mixes, threads), tmp_path)
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", said)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == 2
    if threads == 192:
        assert max(spilled) <= 24
        assert max(registers) <= 112


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mixes", [0, 2, 3])
def test_it_is_one_after_another_on_a_gpu(mixes: int, dtype: torch.dtype) -> None:
    for size in ((64, 3, 36), (257, 4, 768), (40, 2, 4096)):
        leaves, kept = case(size, mixes, dtype, drops=True, device="cuda")
        assert takes(leaves[0], *leaves[2:])
        agree(leaves, mixes, kept, dtype, [True] * (1 + max(mixes, 1)))
        first = slopes(at_once(leaves, mixes, kept, dtype), leaves, [True] * (1 + max(mixes, 1)))
        again: Any = slopes(at_once(leaves, mixes, kept, dtype), leaves, [True] * (1 + max(mixes, 1)))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
