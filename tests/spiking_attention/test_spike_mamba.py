"""Spiking Mamba: its formula step by step, both directions, what spikes, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.neurons import LIF, Stream
from spikeloom.spiking_attention import SpikeMamba

T, B, N, C = 3, 2, 5, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(**options: Any) -> SpikeMamba:
    """A layer whose neurons fire, in float64, to evaluate."""
    torch.manual_seed(0)
    module = SpikeMamba(C, d_state=4, dt_rank=2, **options).double()
    for norm in (module.in_bn, module.out_bn):
        nn.init.constant_(norm.weight, 3.0)
        norm.running_var.fill_(0.1)
        nn.init.constant_(norm.bias, 0.5)
    return module.eval()


def direction(module: Any, s: Tensor, suffix: str) -> Tensor:
    """Convolution and scan of `[L, Di]` of one sample, token by token."""
    conv, x_proj = getattr(module, f"conv1d{suffix}"), getattr(module, f"x_proj{suffix}").weight
    dt_proj, A = getattr(module, f"dt_proj{suffix}"), -getattr(module, f"A{suffix}_log").exp()
    R, n, taps = module.dt_rank, module.d_state, conv.weight[:, 0]
    h, out = torch.zeros(s.shape[1], n, dtype=s.dtype), []
    for t in range(len(s)):
        c = conv.bias.clone()
        for k in range(taps.shape[1]):
            if t - k >= 0:
                c = c + taps[:, -1 - k] * s[t - k]
        c = F.silu(c)
        r, b, read = (x_proj @ c).split([R, n, n])
        dt = F.softplus(dt_proj.weight @ r + dt_proj.bias)
        h = torch.exp(dt[:, None] * A) * h + (dt * c)[:, None] * b
        out.append(h @ read + getattr(module, f"D{suffix}") * c)
    return torch.stack(out)


def fired(norm: Any, x: Tensor) -> Tensor:
    y = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    spikes: Tensor = LIF(backend="reference")(y)
    return spikes


@pytest.mark.parametrize("bidirectional", [True, False], ids=["both", "forward"])
def test_it_is_its_formula(bidirectional: bool) -> None:
    module, y = layer(bidirectional=bidirectional), random(T, B, N, C)
    x, z = (y @ module.in_proj.weight.T).chunk(2, -1)
    s = fired(module.in_bn, x)
    samples = []
    for b in range(B):
        tokens = s[:, b].flatten(0, 1)
        o = direction(module, tokens, "")
        if bidirectional:
            o = o + direction(module, tokens.flip(0), "_b").flip(0)
        samples.append(o.view(T, N, -1))
    expected = (fired(module.out_bn, torch.stack(samples, 1)) * F.silu(z)) @ module.out_proj.weight.T
    torch.testing.assert_close(module(y), expected)
    assert 0.05 < s.mean() < 0.95


def test_forwards_alone_is_causal_and_both_ways_are_not() -> None:
    y = random(T, B, N, C)
    other = y.clone()
    other[-1] += 1
    forward, both = layer(bidirectional=False), layer()
    assert torch.equal(forward(other)[:-1], forward(y)[:-1])
    first, changed = ((random(B, 2 * C, T * N) + shift > 0).double() for shift in (0, 0.3 * torch.eye(T * N)[-1]))
    assert not torch.equal(both.mix(changed)[..., 0], both.mix(first)[..., 0])


def test_a_stream_carries_membranes_and_the_state_of_the_scan() -> None:
    module, y = layer(bidirectional=False), random(T, B, N, C)
    stream = Stream(module)
    torch.testing.assert_close(torch.cat([stream(y[:1]), stream(y[1:])]), module(y), rtol=1e-10, atol=1e-12)
    assert (torch.cat([module(y[:1]), module(y[1:])]) - module(y)).abs().max().item() > 1e-3


def test_a_stream_takes_one_clip_both_ways() -> None:
    module, y = layer(), random(T, B, N, C)
    stream = Stream(module)
    assert torch.equal(stream(y), module(y))
    with pytest.raises(ValueError, match="reset the stream"):
        stream(y)
    assert torch.equal(stream.reset()(y), module(y))


def test_samples_are_apart() -> None:
    module, y = layer(), random(T, B, N, C)
    alone = torch.cat([module(y[:, i : i + 1]) for i in range(B)], 1)
    torch.testing.assert_close(module(y), alone)


def test_both_directions_start_alike() -> None:
    torch.manual_seed(0)
    module: Any = SpikeMamba(64, bidirectional=True)
    for suffix in ("", "_b"):
        bias = getattr(module, f"dt_proj{suffix}").bias
        assert 0.9e-3 < F.softplus(bias).min() < F.softplus(bias).max() < 0.11
        assert torch.equal(getattr(module, f"A{suffix}_log").exp().round(), torch.arange(1.0, 17).expand(128, 16))


def test_training_reaches_every_parameter() -> None:
    module, y = layer().train(), random(T, B, N, C).requires_grad_()
    (module(y) * random(T, B, N, C, seed=1)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    assert y.grad is not None


def test_gradients_go_through_the_states_of_chunks() -> None:
    module, y = layer(bidirectional=False), random(T, B, N, C)
    leaves = [y, *module.parameters()]

    def gradients(*lengths: int) -> tuple[Tensor, ...]:
        state, out = None, []
        for chunk in y.requires_grad_().split(lengths):
            found, state = module(chunk, state=state, return_state=True)
            out.append(found)
        return torch.autograd.grad((torch.cat(out) * random(T, B, N, C, seed=1)).sum(), leaves)

    for whole, cut in zip(gradients(T), gradients(1, 2), strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, B, N, C), (T, 0, N, C), (T, B, 0, C)], ids=["steps", "samples", "tokens"])
def test_nothing_is_refused(shape: tuple[int, ...]) -> None:
    for module in (layer(), layer().train()):
        with pytest.raises(ValueError, match="no axis empty"):
            module(random(*shape))


def test_states_of_something_else_are_refused() -> None:
    module, y = layer(bidirectional=False), random(T, B, N, C)
    _, state = module(y, return_state=True)
    for wrong, says in ((state[:2], "a tuple of 2"), (y, "a Tensor;")):
        with pytest.raises(ValueError, match=says):
            module(y, state=wrong)
    with pytest.raises(ValueError, match=r"a tuple of 1; expected \(values of the convolution, state of the scan\)"):
        module(y, state=(state[0], state[1][:1], state[2]))


def test_wrong_inputs_are_explained() -> None:
    with pytest.raises(ValueError, match=r"expected \[T, B, N, C=8\]"):
        layer()(random(T, B, N, C + 1))
    with pytest.raises(ValueError, match="expand=0"):
        SpikeMamba(C, expand=0)
    with pytest.raises(ValueError, match="d_state"):
        SpikeMamba(C, d_state=0)
