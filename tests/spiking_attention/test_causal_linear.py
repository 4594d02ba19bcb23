"""Causal linear attention: chunks against the recurrence, strong decay, splits, gradients; the spiking layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom import Stream
from spikeloom.spiking_attention import SpikingLinearAttention
from spikeloom.spiking_attention.causal_linear import attend, attend_delta, slopes

B, H, L, DK, DV = 2, 3, 37, 5, 4
GATES = {"head": (H,), "token": (B, H, L), "row": (B, H, L, DK)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(gate: str = "token", strongest: float = 1.0) -> dict[str, Tensor]:
    g = -strongest * random(*GATES[gate], seed=3).sigmoid()
    return {"q": random(B, H, L, DK), "k": random(B, H, L, DK, seed=1), "v": random(B, H, L, DV, seed=2), "g": g}


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token, as it is defined."""
    S = torch.zeros(B, H, DK, DV, dtype=q.dtype) if state is None else state
    out = []
    for t in range(q.shape[2]):
        decay = g.view(1, H, 1, 1) if g.ndim == 1 else g[:, :, t].unflatten(2, (-1, 1)) if g.ndim == 4 else None
        S = (g[:, :, t, None, None] if decay is None else decay).exp() * S
        write = v[:, :, t]
        if beta is not None:
            write = beta[:, :, t, None] * (write - torch.einsum("bhkv,bhk->bhv", S, k[:, :, t]))
        S = S + k[:, :, t, :, None] * write[:, :, None]
        out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, :, t]))
    return torch.stack(out, 2) * DK**-0.5, S


@pytest.mark.parametrize("chunk", [1, 5, 16, 40])
@pytest.mark.parametrize("gate", GATES)
def test_chunks_are_the_recurrence(gate: str, chunk: int) -> None:
    given, S0 = operands(gate), random(B, H, DK, DV, seed=4)
    for found, expected in zip(attend(**given, state=S0, chunk=chunk), recurrence(**given, state=S0), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk", [1, 5, 16, 40])
@pytest.mark.parametrize("gate", ["head", "token", None])
def test_chunks_of_the_delta_rule_are_the_recurrence(gate: str | None, chunk: int) -> None:
    given, S0, beta = operands(gate or "head"), random(B, H, DK, DV, seed=4), 2 * random(B, H, L, seed=5).sigmoid()
    given["k"] = torch.nn.functional.normalize(given["k"], dim=-1)
    if gate is None:
        given["g"] = torch.zeros(H, dtype=torch.float64)
    expected = recurrence(**given, beta=beta, state=S0)
    if gate is None:
        del given["g"]
    found = attend_delta(**given, beta=beta, state=S0, chunk=chunk)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gate", GATES)
def test_strong_decay_stays_finite_and_exact(gate: str) -> None:
    given = operands(gate, strongest=50.0)
    single = {name: t.float().requires_grad_() for name, t in given.items()}
    found, expected = attend(**single)[0], recurrence(**given)[0]
    assert (found.double() - expected).abs().max() <= 5e-5 * expected.abs().max()
    found.sum().backward()
    assert all(t.grad is not None and bool(t.grad.isfinite().all()) for t in single.values())


def test_a_split_sequence_is_the_whole() -> None:
    given = operands("row")
    whole, end = attend(**given)
    state, parts = None, []
    for span in (slice(0, 9), slice(9, 10), slice(10, L)):
        part, state = attend(**{name: t[:, :, span] for name, t in given.items()}, state=state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", [*GATES, "delta"])
def test_gradients_are_those_of_differences(gate: str) -> None:
    shapes = {"q": (1, 2, 5, 2), "k": (1, 2, 5, 2), "v": (1, 2, 5, 3), "state": (1, 2, 2, 3)}
    given = {name: random(*shape, seed=i).requires_grad_() for i, (name, shape) in enumerate(shapes.items())}
    g_shape = {"head": (2,), "row": (1, 2, 5, 2)}.get(gate, (1, 2, 5))
    given["g"] = (-random(*g_shape, seed=7).sigmoid()).detach().requires_grad_()
    if gate == "delta":
        given["beta"] = random(1, 2, 5, seed=8).sigmoid().detach().requires_grad_()
    function: Any = attend_delta if gate == "delta" else attend

    def run(*tensors: Tensor) -> Any:
        return function(**dict(zip(given, tensors, strict=True)), chunk=3)

    assert torch.autograd.gradcheck(run, tuple(given.values()))


def test_bfloat16_keeps_its_state_in_float32() -> None:
    o, S = attend(**{name: t.bfloat16() for name, t in operands().items()})
    assert (o.dtype, S.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("gate", [*GATES, "delta"])
def test_autocast_changes_nothing(gate: str) -> None:
    given: dict[str, Any] = {name: t.float() for name, t in operands("token" if gate == "delta" else gate).items()}
    if gate == "delta":
        given["beta"] = torch.full((B, H, L), 0.5)
        given["k"] = torch.nn.functional.normalize(given["k"], dim=-1)
    function: Any = attend_delta if gate == "delta" else attend
    with torch.autocast("cpu", torch.bfloat16):
        found = function(**given)
    for ours, expected in zip(found, function(**given), strict=True):
        assert torch.equal(ours, expected)


def test_meta_tensors_have_shapes() -> None:
    o, S = attend(**{name: t.to("meta") for name, t in operands().items()})
    assert (list(o.shape), list(S.shape)) == ([B, H, L, DV], [B, H, DK, DV])
    with torch.device("meta"):
        net = SpikingLinearAttention(16, 2)
    assert net.decay_rate.is_meta


def test_slopes() -> None:
    assert slopes(4).tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    assert slopes(6).tolist() == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    torch.testing.assert_close(slopes(4, 1, 3), slopes(4) * (0.5 + 1e-5))
    for wrong in ((0, 0, 1), (4, 3, 3)):
        with pytest.raises(ValueError, match="slopes got"):
            slopes(*wrong)


def test_shapes_that_do_not_fit_are_refused() -> None:
    given = operands()
    for name, wrong, says in (
        ("k", random(B, H, L - 1, DK), r"k \[2, 3, 36, 5\]"),
        ("g", random(B, H), r"g \[2, 3\]; expected \[3\]"),
        ("state", random(B, H, DV, DK), r"a state \[2, 3, 4, 5\]; expected \[2, 3, 5, 4\]"),
    ):
        with pytest.raises(ValueError, match=says):
            attend(**{**given, name: wrong})
    with pytest.raises(ValueError, match="chunk=0"):
        attend(**given, chunk=0)
    with pytest.raises(ValueError, match="expected beta"):
        attend_delta(**operands("row"), beta=random(B, H, L))


def layer(**options: Any) -> SpikingLinearAttention:
    torch.manual_seed(0)
    return SpikingLinearAttention(16, 4, **options).double()


def test_a_stream_cut_anywhere_is_one_call() -> None:
    module, x = layer(), (random(L, B, 16) > 0).double()
    whole, stream = module(x), Stream(module)
    torch.testing.assert_close(torch.cat([stream(part) for part in x.split([1, 5, 1, 30])]), whole)
    steps, stream = [], Stream(layer(chunk=1))
    for token in x.split(1):
        steps.append(stream(token))
    torch.testing.assert_close(torch.cat(steps), whole)
    assert sum(t.numel() for t in stream.state_dict().values()) == B * (4 * 16 + 4 * 4 * 4), "whatever L is"


def test_it_is_causal_and_its_neurons_fire() -> None:
    module, x = layer(), (random(L, B, 16) > 0).double()
    rates = {}
    for name in ("q_lif", "k_lif", "v_lif", "attn_lif"):
        module.get_submodule(name).register_forward_hook(
            lambda m, given, out, name=name: rates.update({name: out[0].mean().item()})
        )
    y = module(x)
    assert all(0.05 < rates[name] < 0.4 for name in ("q_lif", "k_lif", "v_lif")), rates
    assert rates["attn_lif"] > 0.01
    other = x.clone()
    other[20:] = 1 - other[20:]
    torch.testing.assert_close(module(other)[:20], y[:20])
    y.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_layers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads=3"):
        SpikingLinearAttention(16, 3)
    with pytest.raises(ValueError, match=r"decay_rate \[2\]; expected \[4\]"):
        SpikingLinearAttention(16, 4, decay_rate=torch.ones(2))
    with pytest.raises(ValueError, match=r"expected \[L, B, C=16\]"):
        layer()(random(L, 16))
