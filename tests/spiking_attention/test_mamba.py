"""The Mamba mixer: both directions, streams, first values, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from spikeloom.neurons import Stream
from spikeloom.spiking_attention.mamba import MambaMixer


def mixer(bidirectional: bool, *, time_first: bool = False, d_conv: int = 3) -> MambaMixer:
    torch.manual_seed(1)
    return MambaMixer(
        6, bidirectional=bidirectional, d_state=4, d_conv=d_conv, dt_rank=2, time_first=time_first
    ).double()


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def copied(to: MambaMixer, source: MambaMixer, suffix: str) -> MambaMixer:
    """`to`, in one direction, with the parameters of one direction of `source`."""
    theirs, names = source.state_dict(), {"A_log": f"A{suffix}_log", "D": f"D{suffix}"}
    for name in to.state_dict():
        layer, _, part = name.partition(".")
        names.setdefault(name, name if layer in ("in_proj", "out_proj") else f"{layer}{suffix}.{part}")
    to.load_state_dict({n: theirs[names[n]] for n in to.state_dict()})
    return to


def test_both_directions_are_one_forwards_and_one_backwards() -> None:
    both, x = mixer(True), tokens(2, 9, 6)
    ahead, behind = (copied(mixer(False), both, suffix) for suffix in ("", "_b"))
    torch.testing.assert_close(both(x), ahead(x) + behind(x.flip(1)).flip(1), rtol=1e-12, atol=1e-12)


def test_one_direction_is_causal_and_both_are_not() -> None:
    x = tokens(1, 8, 6)
    changed = x.clone()
    changed[:, 5] += 1
    for both in (False, True):
        net = mixer(both)
        same = (net(x) - net(changed)).abs().amax(-1)[0] < 1e-14
        assert bool(same[:5].all()) is not both
        assert not bool(same[5:].any())


@pytest.mark.parametrize("d_conv", [1, 3, 4])
@pytest.mark.parametrize("cuts", [[1] * 9, [2, 7], [5, 1, 3]], ids=str)
def test_pieces_are_the_whole(d_conv: int, cuts: list[int]) -> None:
    """Pieces shorter than the convolution too; with gradients through the state."""
    net, x = mixer(False, d_conv=d_conv), tokens(2, 9, 6).requires_grad_()
    whole, end = net(x, return_state=True)
    state, found = None, []
    for piece in x.split(cuts, 1):
        y, state = net(piece, state=state, return_state=True)
        found.append(y)
    pieces = torch.cat(found, 1)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-13)
    assert state is not None
    assert [list(s.shape) for s in state] == [[2, 12, d_conv], [2, 12, 4]]
    for part, expected in zip(state, end, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-13)
    grads = [torch.autograd.grad((y * tokens(2, 9, 6)).sum(), x)[0] for y in (pieces, whole)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_a_stream_carries_the_state() -> None:
    net, x = mixer(False, time_first=True), tokens(9, 2, 6)
    twin = mixer(False)
    torch.testing.assert_close(net(x), twin(x.transpose(0, 1)).transpose(0, 1), rtol=1e-12, atol=1e-13)
    stream = Stream(net)
    pieces = torch.cat([stream(piece) for piece in x.split([4, 1, 4])])
    torch.testing.assert_close(pieces, net(x), rtol=1e-12, atol=1e-13)
    assert len(stream.state) == 1
    saved = Stream(net).load_state_dict(stream.state_dict())
    torch.testing.assert_close(saved(x), stream(x))


def test_both_directions_refuse_a_stream() -> None:
    net, x = mixer(True), tokens(2, 9, 6)
    with pytest.raises(ValueError, match="bidirectional=False"):
        net(x, return_state=True)
    with pytest.raises(ValueError, match="bidirectional=False"):
        Stream(net)(x)


def test_first_values() -> None:
    torch.manual_seed(0)
    net = MambaMixer(32)
    R, Di, n = 2, 64, 16
    for suffix in ("", "_b"):
        rates, dt = net.get_parameter(f"A{suffix}_log"), net.get_submodule(f"dt_proj{suffix}")
        torch.testing.assert_close(rates.exp(), torch.arange(1.0, n + 1).expand(Di, n))
        assert torch.equal(net.get_parameter(f"D{suffix}"), torch.ones(Di))
        steps = torch.nn.functional.softplus(dt.get_parameter("bias"))
        assert 1e-3 * 0.999 <= steps.min().item() < 3e-3
        assert 0.03 < steps.max().item() <= 0.1 * 1.001
        weight = dt.get_parameter("weight")
        assert 0.9 * R**-0.5 < weight.abs().max().item() <= R**-0.5
        assert rates._no_weight_decay
        assert dt.get_parameter("bias")._no_reinit
    shapes = {name: list(p.shape) for name, p in net.named_parameters() if "_b" not in name}
    assert shapes == {
        "A_log": [Di, n],
        "D": [Di],
        "conv1d.weight": [Di, 1, 4],
        "conv1d.bias": [Di],
        "x_proj.weight": [R + 2 * n, Di],
        "dt_proj.weight": [Di, R],
        "dt_proj.bias": [Di],
        "in_proj.weight": [2 * Di, 32],
        "out_proj.weight": [32, Di],
    }
    assert sum(p.numel() for p in MambaMixer(256).parameters()) == 482_560 - 256


def test_copies_keep_their_marks() -> None:
    twin, marked = copy.deepcopy(mixer(True)), ("A_log", "A_b_log", "D", "D_b")
    assert {n for n, p in twin.named_parameters() if getattr(p, "_no_weight_decay", False)} == set(marked)
    assert twin.get_submodule("dt_proj_b").get_parameter("bias")._no_reinit


def test_a_state_does_not_keep_the_sequence_alive() -> None:
    _, (last, _) = mixer(False)(tokens(2, 500, 6), return_state=True)
    assert last.untyped_storage().nbytes() <= 2 * last.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(dtype: torch.dtype) -> None:
    for both in (False, True):
        exact = mixer(both)
        x = tokens(2, 20, 6)
        net = mixer(both).to(dtype)
        y = net(x.to(dtype))
        assert y.dtype == dtype
        assert (y.double() - exact(x)).abs().max().item() < 0.05


def test_autocast() -> None:
    net, x = mixer(True).float(), tokens(2, 20, 6).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert (y.float() - net(x)).abs().max().item() < 0.05
    y.float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def test_what_does_not_fit_is_refused() -> None:
    net = mixer(False)
    with pytest.raises(ValueError, match="C = 6"):
        net(tokens(2, 9, 5))
    with pytest.raises(ValueError, match="L >= 1"):
        net(tokens(2, 0, 6))
    _, (conv, h) = net(tokens(2, 9, 6), return_state=True)
    with pytest.raises(ValueError, match="convolution state"):
        net(tokens(3, 9, 6), state=(conv, h))
    with pytest.raises(ValueError, match="initial_state"):
        net(tokens(2, 9, 6), state=(conv, h[:, :, :3]))
    for state, says in ((h, "got as state a Tensor; expected"), ((conv,), "a tuple of 1; expected")):
        with pytest.raises(ValueError, match=says):
            net(tokens(2, 9, 6), state=state)  # type: ignore[arg-type]
    for wrong in ({"dim": 0}, {"dim": 4, "expand": 0}, {"dim": 4, "d_state": 0}, {"dim": 4, "dt_rank": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            MambaMixer(**wrong)  # type: ignore[arg-type]
