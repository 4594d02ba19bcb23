"""A read-out whose weight is padded for the product alone: nobody sees the rows that are more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.models import create_model, language_loss, read_out

T, B, C, V = 5, 3, 16, 77


@pytest.fixture
def padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU too, in the type of autocast or of the weight."""
    monkeypatch.setattr(read_out, "pads", lambda features, weight: True)


def layer(classes: int = V) -> Any:
    torch.manual_seed(0)
    return read_out.ReadOut(C, classes)


def features() -> Tensor:
    return torch.randn(T, B, C, generator=torch.Generator().manual_seed(1)).requires_grad_()


def targets() -> Tensor:
    return torch.randint(V, (T, B), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [V, 64, 1])
def test_it_is_a_linear_map(dtype: torch.dtype, classes: int) -> None:
    net, x = layer(classes), features()
    logits = read_out.read_out(x, net.weight, dtype)
    assert (logits.shape, logits.dtype) == ((T, B, classes), dtype)
    assert logits.stride() == (B * read_out.padded(classes), read_out.padded(classes), 1)
    expected = F.linear(x.to(dtype), net.weight.to(dtype))
    grad = torch.randn(T, B, classes, generator=torch.Generator().manual_seed(3)).to(dtype)
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-6}[dtype]
    torch.testing.assert_close(logits, expected, rtol=limit, atol=limit)
    wanted = torch.autograd.grad(expected, [x, net.weight], grad)
    for one, other in zip(torch.autograd.grad(logits, [x, net.weight], grad), wanted, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=limit, atol=4 * limit)


def test_a_gradient_in_the_same_rows_is_read_where_it_lies() -> None:
    """With the same bits as one that has to be copied."""
    net, x, width = layer(), features(), read_out.padded(V)
    dense = torch.randn(T, B, V, generator=torch.Generator().manual_seed(3))
    apart = F.pad(dense, (0, width - V))[..., :V]
    assert apart.stride(1) == width
    assert read_out.whole_rows(apart, width).data_ptr() == apart.data_ptr()
    found = [
        torch.autograd.grad(read_out.read_out(x, net.weight, torch.float32), [x, net.weight], g) for g in (dense, apart)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for other in (dense, apart[:, :1], apart.transpose(0, 1), apart[..., 1:], dense[:1, :1].expand(T, B, V)):
        rows = read_out.whole_rows(other, width)
        assert rows.shape == (other.shape[0] * other.shape[1], width)
        assert torch.equal(rows[:, : other.shape[2]], other.reshape(-1, other.shape[2]))


def test_logits_may_be_changed_in_place() -> None:
    net, x, found = layer(), features(), []
    for logits in (read_out.read_out(x, net.weight, torch.float32), F.linear(x, net.weight)):
        logits[..., 5] = -30.0
        logits /= 2
        found.append(torch.autograd.grad(language_loss(logits, targets()), [x, net.weight]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not found[0][1][5].any()


def test_rows_that_end_with_their_memory_are_copied() -> None:
    width = read_out.padded(V)
    short = torch.randn(T * B * width - 1).as_strided((T, B, V), (B * width, width, 1))
    assert torch.equal(read_out.whole_rows(short, width)[:, :V], short.reshape(-1, V))


def test_no_padded_class_wins_or_counts(padding: None) -> None:
    """All logits are negative, so zeros would be the largest."""
    net, x = layer(), features()
    with torch.no_grad():
        net.weight.copy_(-net.weight.abs())
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x.abs())
        assert bool((logits < 0).all())
        assert int(logits.argmax(2).max()) < V
        assert torch.equal(logits, F.linear(x.abs(), net.weight))
        loss = language_loss(logits, targets())
    torch.testing.assert_close(loss, F.cross_entropy(logits.float().flatten(0, 1), targets().flatten()))


def test_training_by_it_is_training(padding: None, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, found = layer(), features(), []
    for pads in (True, False):
        monkeypatch.setattr(read_out, "pads", lambda features, weight, pads=pads: pads)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x)
        found.append(torch.autograd.grad(language_loss(logits, targets()), [x, net.weight]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-12)
    assert list(net.state_dict()) == ["weight"]
    assert net.weight.shape == (V, C)


def test_frozen_features_or_weight_and_a_second_derivative() -> None:
    net, x = layer(), features()
    (one,) = torch.autograd.grad(read_out.read_out(x.detach(), net.weight, torch.float32).sum(), net.weight)
    (other,) = torch.autograd.grad(read_out.read_out(x, net.weight.detach(), torch.float32).sum(), x)
    assert (one.shape, other.shape) == (net.weight.shape, x.shape)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(read_out.read_out(x, net.weight, torch.float32).sum(), x, create_graph=True)


class Gpu(torch.Tensor):
    is_cuda = True


def test_where_it_pads(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.zeros(V, 4), torch.zeros(64, 4, 4)

    def asked(x: Tensor, weight: Tensor = weight) -> bool:
        return read_out.pads(x.as_subclass(Gpu), weight)

    monkeypatch.setattr(read_out, "is_plain", lambda t: True)
    assert not asked(x)  # without autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert not read_out.pads(x, weight)  # on a CPU
        assert asked(x)
        assert asked(x.bfloat16())
        for wrong in (x[1:], x.double(), x[0], x[..., :2]):
            assert not asked(wrong)
        assert not asked(x, torch.zeros(128, 4))
        assert not asked(x, weight.double())
        monkeypatch.setattr(read_out, "dispatched", lambda: True)
        assert not asked(x)


def test_the_language_model_has_it() -> None:
    net = create_model("spikegpt_46m", vocab_size=V, embed_dim=C, depth=1)
    assert isinstance(net.head, read_out.ReadOut)
    assert net.state_dict()["head.weight"].shape == (V, C)


@pytest.mark.gpu
def test_it_is_a_linear_map_on_a_gpu() -> None:
    torch.manual_seed(0)
    net = read_out.ReadOut(64, 5027).cuda()
    x = torch.randn(128, 4, 64, device="cuda", requires_grad=True)
    ids = torch.randint(5027, (128, 4), device="cuda")
    found = []
    for classes in (read_out.MULTIPLE, 1):
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cuda", torch.bfloat16):
            patch.setattr(read_out, "MULTIPLE", classes)
            assert read_out.pads(x, net.weight) == (classes > 1)
            loss = language_loss(net(x), ids)
        found.append([loss, *torch.autograd.grad(loss, [x, net.weight])])
    for one, other in zip(*found, strict=True):
        assert ((one - other).norm() / other.norm()).item() < 0.01
