"""WKV against its sum over all pairs of tokens, its state and the gradients through it, and the mixers around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikeloom.neurons import Neuron, Stream
from spikeloom.spiking_attention import WKV, ChannelMix, TimeMix
from spikeloom.spiking_attention.wkv import NOTHING

T, B, C = 37, 3, 5
CUTS = [[T], [1] * T, [1, T - 1], [T - 1, 1], [16, 16, 5], [17, 3, 17]]


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wkv(C: int = C) -> WKV:
    return WKV(random(C, seed=1, scale=1.0) - 0.5, random(C, seed=2, scale=1.0))


def direct(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor) -> Tensor:
    """The sums as they are written, [T, T, B, C] at once."""
    T = len(k)
    t, i = torch.arange(T)[:, None], torch.arange(T)[None, :]
    decay = -torch.exp(time_decay) * (t - 1 - i)[:, :, None, None]
    exponent = torch.where((i == t)[:, :, None, None], time_first, decay) + k
    weights = exponent.masked_fill((i > t)[:, :, None, None], -torch.inf).softmax(1)
    return (weights * v).sum(1)


def leaves(*seeds: int) -> list[Tensor]:
    return [random(T, B, C, seed=seed).requires_grad_() for seed in seeds]


def gradients(net: WKV, *tensors: Tensor) -> list[Tensor]:
    found = [*(t.grad for t in tensors), *(p.grad for p in net.parameters())]
    assert all(g is not None for g in found)
    return [g.clone() for g in found if g is not None]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_it_is_the_sum_over_all_earlier_tokens(backend: str) -> None:
    net, (k, v), cotangent = wkv(), leaves(3, 4), random(T, B, C, seed=5)
    net.backend = backend
    y = net(k, v)
    y.backward(cotangent)
    found = gradients(net, k, v)
    net.zero_grad()
    k2, v2 = leaves(3, 4)
    expected = direct(k2, v2, net.get_parameter("time_decay"), net.get_parameter("time_first"))
    expected.backward(cotangent)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(found, gradients(net, k2, v2), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    assert torch.equal(y[0], v[0])


def test_three_tokens_by_hand() -> None:
    """Decay e^-1 per token, bonus ln 2, keys 0: weights 2; 1, 2; e^-1, 1, 2."""
    net = WKV(torch.zeros(1).double(), torch.full((1,), 2.0).double().log())
    v = torch.tensor([3.0, 6.0, 9.0], dtype=torch.float64).view(3, 1, 1)
    e = torch.tensor(-1.0, dtype=torch.float64).exp().item()
    expected = torch.tensor([3.0, (3 + 12) / 3, (3 * e + 6 + 18) / (e + 3)], dtype=torch.float64)
    torch.testing.assert_close(net(torch.zeros_like(v), v).flatten(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts)}-{cuts[0]}")
def test_any_pieces_with_the_state_are_one_call(cuts: list[int]) -> None:
    """Results, final state and every gradient, those through the state included."""
    net, cotangent, ends = wkv(), random(T, B, C, seed=5), [random(B, C, seed=seed) for seed in (6, 7)]

    def run(pieces: list[int]) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
        net.zero_grad()
        k, v = leaves(3, 4)
        results, state = [], None
        for keys, values in zip(k.split(pieces), v.split(pieces), strict=True):
            y, state = net(keys, values, state=state, return_state=True)
            results.append(y)
        assert state is not None
        p, q, o = state
        y = torch.cat(results)
        loss = (y * cotangent).sum() + sum(
            (s * o.detach().exp() * end).sum() for s, end in zip((p, q), ends, strict=True)
        )
        loss.backward()
        return y, state, gradients(net, k, v)

    y, state, grads = run(cuts)
    expected, end, wanted = run([T])
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    for ours, theirs in zip((*state, *grads), (*end, *wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients_are_those_of_differences(backend: str) -> None:
    """Of keys, values, both parameters and an incoming state, into results and the outgoing sums."""
    net = wkv(2)
    net.backend = backend
    o = random(1, 2, seed=9)

    def run(k: Tensor, v: Tensor, decay: Tensor, first: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
        y, (p, q, scale) = net.step(k, v, state=(p, q, o), backend=backend, time_decay=decay, time_first=first)
        return y, p * scale.detach().exp(), q * scale.detach().exp()

    given = [random(4, 1, 2, seed=3, scale=1.0), random(4, 1, 2, seed=4, scale=1.0)]
    given += [random(2, seed=5, scale=0.5), random(2, seed=6, scale=0.5)]
    given += [random(1, 2, seed=7, scale=1.0), random(1, 2, seed=8, scale=1.0).abs() + 0.5]
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in given], atol=1e-6)


def test_a_stream_is_one_call_and_its_clones_go_their_own_ways() -> None:
    net, k, v = wkv(), random(T, B, C, seed=3), random(T, B, C, seed=4)
    stream = Stream(net)
    with torch.no_grad():
        whole = net(k, v)
        first = stream(k[:20], v[:20])
        twin = stream.clone()
        other = twin(-k[20:], v[20:])
        assert torch.equal(torch.cat([first, stream(k[20:], v[20:])]), whole)
        again = net(torch.cat([k[:20], -k[20:]]), v)
    assert torch.equal(other, again[20:])
    assert not torch.equal(other, whole[20:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [300.0, 1e4])
def test_large_keys_stay_finite(dtype: torch.dtype, size: float) -> None:
    net = wkv().to(dtype)
    sign = torch.where(torch.arange(T) % 3 == 0, 1.0, -1.0).view(T, 1, 1)
    k = (size * sign * random(T, B, C, seed=3, scale=1.0).abs().clamp(max=1)).to(dtype).requires_grad_()
    v = random(T, B, C, seed=4).to(dtype).requires_grad_()
    y = net(k, v)
    y.square().sum().backward()
    assert all(bool(x.isfinite().all()) for x in (y, *gradients(net, k, v)))
    assert bool((y <= v.amax(0) + 1e-3).all())
    assert bool((y >= v.amin(0) - 1e-3).all())


def test_long_texts_and_half_precision() -> None:
    net, k, v = wkv(), random(3000, 1, C, seed=3), random(3000, 1, C, seed=4)
    with torch.no_grad():
        whole = net(k, v)
        stream = Stream(net)
        assert torch.equal(torch.cat([stream(*pair) for pair in zip(k.split(1500), v.split(1500), strict=True)]), whole)
        half, state = net.float()(k.bfloat16(), v.bfloat16(), return_state=True)
    assert half.dtype == torch.bfloat16
    assert {part.dtype for part in state} == {torch.float32}
    torch.testing.assert_close(half.double(), whole, rtol=0.05, atol=0.05)


def test_wrong_inputs_are_explained() -> None:
    net = wkv()
    with pytest.raises(ValueError, match=r"v has shape \[4, 3, 4\] but k has \[4, 3, 5\]"):
        net(torch.zeros(4, 3, 5), torch.zeros(4, 3, 4))
    with pytest.raises(ValueError, match=r"T = 0 time steps"):
        net(torch.zeros(0, 3, 5), torch.zeros(0, 3, 5))
    with pytest.raises(ValueError, match=r"start from rest \(state=None\) when the batch changes"):
        net(torch.zeros(4, 2, 5), torch.zeros(4, 2, 5), state=tuple(torch.zeros(3, 5) for _ in range(3)))
    with pytest.raises(ValueError, match=r"time_decay \[5\] and time_first \[4\]; expected one"):
        WKV(torch.zeros(5), torch.zeros(4))
    assert net.program.rest_state({})[2] == NOTHING


@pytest.mark.parametrize("kind", [TimeMix, ChannelMix])
def test_mixers_read_the_token_before(kind: type[TimeMix] | type[ChannelMix]) -> None:
    """Causal; and with all weight on the token before, a mixer gives what it gave for it, one token later."""
    torch.manual_seed(0)
    net, x = kind(8).double(), random(6, 2, 8)
    with torch.no_grad():
        whole = net(x)
        changed = torch.cat([x[:3], -x[3:]])
        assert torch.equal(net(changed)[:3], whole[:3])
        assert not torch.equal(net(changed)[3], whole[3])
        stream = Stream(net)
        torch.testing.assert_close(torch.cat([stream(piece) for piece in x.split([1, 3, 2])]), whole)
        assert torch.equal(stream.state["mix#0"][0], x[-1])
        late = set_all(net, 0.0)(x)
        now = set_all(net, 1.0)(x)
    torch.testing.assert_close(late[0], torch.zeros(2, 8).double())
    if kind is ChannelMix:
        torch.testing.assert_close(late[1:], now[:-1])


def set_all(net: nn.Module, value: float) -> nn.Module:
    """All mixing weights the same: 1 reads the token alone, 0 the one before."""
    mix = net.get_submodule("mix")
    assert isinstance(mix, Neuron)
    for parameter in mix.parameters():
        parameter.fill_(value)
    return net
