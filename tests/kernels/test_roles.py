"""Inputs, states, parameters and outputs: every kind, number and shape of them, in kernel and reference alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from spikeloom.kernels import detach, maximum, sigmoid, spike, step, where

T, B, C, H, W = 5, 2, 3, 4, 5


@step(state={"v": "v_rest", "w": lambda a, b, v_rest: 0.5 * v_rest + a})
def pair(x: Any, z: Any, v: Any, w: Any, *, a: Any = 0.9, b: Any = 1.7, v_rest: Any = 0.1) -> Any:
    """Two inputs, two states that drive each other, two outputs; parameters in products, quotients and rest values."""
    h = a * v + (x - w) / b
    s = spike(h - 0.6, "triangle", 0.5)
    w = 0.8 * w + z * s
    return s, h * z, where(detach(s), v_rest, h), maximum(w, -1.0)


def inputs(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in pair.inputs]


SHAPES = [(), (1,), (1, 1, 1), (1, 1, 1, 1), (W,), (H, 1), (H, W), (C, 1, 1), (1, C, 1, 1), (C, 1, W), (C, H, 1)]
SHAPES += [(C, H, W), (B, 1, 1, 1), (B, 1, 1, W), (B, C, H, W)]
"""Of a parameter of [T, B, C, H, W] inputs: single, per axis, per two axes, per neuron, with gaps."""


@pytest.mark.parametrize("order", ["contiguous", "channels last", "batch first"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensor_parameters_of_every_shape(
    loom: Any, generator: torch.Generator, shape: tuple[int, ...], order: str
) -> None:
    given = [ordered(x, order) for x in inputs(generator, T, B, C, H, W)]
    a = 0.5 + 0.5 * torch.rand(shape, generator=generator)
    expected, _ = loom.agree(pair, given, {"a": a, "b": 1.3, "v_rest": torch.tensor(0.05)})
    assert expected.gradients["a"].shape == shape
    assert expected.gradients["a"].ne(0).all()


def ordered(x: torch.Tensor, order: str) -> torch.Tensor:
    """[T, B, C, H, W] with its axes in another order in memory."""
    places = {"contiguous": (0, 1, 2, 3, 4), "channels last": (0, 1, 3, 4, 2), "batch first": (1, 0, 2, 3, 4)}[order]
    back = [places.index(axis) for axis in range(5)]
    return x.permute(places).contiguous().permute(back)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_parameters_that_do_not_lie_gapless_in_memory(loom: Any, generator: torch.Generator, layout: str) -> None:
    whole = torch.rand((2 * W, 2 * H), generator=generator)
    a = {"transposed": whole[:W, :H].t(), "strided": whole.t()[::2, ::2], "expanded": whole[:1, :1].expand(H, W)}[
        layout
    ]
    assert a.shape == (H, W)
    assert not a.is_contiguous()
    loom.agree(pair, inputs(generator, T, B, C, H, W), {"a": a, "b": 1.3, "v_rest": torch.tensor(0.05)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_parameters_of_another_dtype_than_the_arithmetic(
    loom: Any, generator: torch.Generator, dtype: torch.dtype
) -> None:
    a = (0.5 + 0.5 * torch.rand((C, 1, 1), generator=generator)).to(dtype)
    expected, got = loom.agree(
        pair, inputs(generator, T, B, C, H, W), {"a": a, "b": 1.3, "v_rest": torch.tensor(0.05)}, gradient=2**-8
    )
    assert expected.gradients["a"].dtype == got.gradients["a"].dtype == dtype


def test_gradient_of_a_parameter_sums_over_many_lanes_and_steps(loom: Any, generator: torch.Generator) -> None:
    """More lanes than one block or one thread owns; the sum must not lose what a float32 running sum would lose."""
    given = inputs(generator, 20, 37, 3, 301)
    values = {"a": torch.full((3, 1), 0.7), "b": torch.tensor(1.3), "v_rest": torch.rand((37, 1, 301)) / 4}
    exact = loom.run(pair, [x.double() for x in given], {n: p.double() for n, p in values.items()}, backend="reference")
    got = loom.run(pair, given, values)
    assert (exact.outputs[0] != got.outputs[0]).sum() < 30, "float32 and float64 membranes part company"
    for name in values:
        assert loom.distance(exact.gradients[name].float(), got.gradients[name]) < 2e-3, name
    again = loom.run(pair, given, values)
    assert all(torch.equal(got.gradients[n], again.gradients[n]) for n in got.gradients), "not the same bits every run"


def test_a_number_may_change_without_compiling(
    loom: Any, generator: torch.Generator, compiled: Callable[[], int]
) -> None:
    given = inputs(generator, T, 7)
    loom.agree(pair, given, {"a": 0.3, "b": 1.5})
    before = compiled()
    for a, b in ((0.4, 1.5), (-0.3, 1e-3), (0.1 + 0.2, 1e4)):
        expected, _ = loom.agree(pair, given, {"a": a, "b": b})
    assert compiled() == before
    loom.agree(pair, given, {"a": 0.4, "b": 2})  # a GPU multiplies instead of dividing by powers of two
    before = compiled()
    loom.agree(pair, given, {"a": 0.4, "b": 8})
    assert compiled() == before
    assert not torch.equal(expected.outputs[1], loom.run(pair, given, {"a": 0.4, "b": b}).outputs[1])


def test_numbers_and_single_tensors_give_the_same_bits(loom: Any, generator: torch.Generator) -> None:
    given = inputs(generator, T, 7)
    numbers = loom.run(pair, given, {"a": 0.37, "b": 1.9, "v_rest": 0.05})
    tensors = loom.run(
        pair, given, {"a": torch.tensor(0.37), "b": torch.tensor([1.9]), "v_rest": torch.full((7,), 0.05)}
    )
    assert all(torch.equal(x, y) for x, y in zip(numbers.states, tensors.states, strict=True))
    assert torch.equal(numbers.outputs[1], tensors.outputs[1])


def test_a_number_on_the_cpu_serves_any_device(loom: Any, generator: torch.Generator) -> None:
    tau = torch.tensor(1.3, requires_grad=True)
    given = [x.to(loom.device) for x in inputs(generator, T, 7)]
    pair(*given, b=tau, backend=loom.device)[0][1].sum().backward()
    expected = loom.run(pair, given, {"b": torch.tensor(1.3)}, only=1, ones=True)
    assert tau.grad.item() == pytest.approx(expected.gradients["b"].item(), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 16, 17, 40])
def test_initial_states_are_taken_and_differentiated(loom: Any, generator: torch.Generator, steps: int) -> None:
    given = inputs(generator, steps, 3, 7)
    state = [torch.randn((3, 7), generator=generator) for _ in pair.states]
    expected, _ = loom.agree(pair, given, {"a": torch.tensor(0.9)}, state)
    assert expected.gradients["v"].any()
    rested = loom.run(pair, given, backend="reference", backward=False)
    assert not torch.equal(rested.outputs[1], expected.outputs[1])


def test_two_calls_with_the_state_handed_on_are_one_call(loom: Any, generator: torch.Generator) -> None:
    x, z = (t.to(loom.device) for t in inputs(generator, 40, 7))
    (s, y), ends = pair(x, z, backend=loom.device)
    pieces, state = [], None
    for part in (slice(0, 1), slice(1, 18), slice(18, 40)):
        made, state = pair(x[part], z[part], state=state, backend=loom.device)
        pieces.append(made)
    assert torch.equal(torch.cat([p[0] for p in pieces]), s)
    assert torch.equal(torch.cat([p[1] for p in pieces]), y)
    assert all(torch.equal(a, b) for a, b in zip(state, ends, strict=True))


def test_rest_values_reach_the_first_step_and_get_gradients(loom: Any) -> None:
    """x = z = 0 and a = 1: h[0] = v_rest - w_rest / b with w_rest = v_rest / 2 + a, worked out by hand."""
    zeros = torch.zeros(1, 1, 4)
    values = {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "v_rest": torch.tensor([0.0, 0.25, 0.5, 1.0])}
    _, got = loom.agree(pair, [zeros, zeros + 1.0], values, only=1, ones=True)
    assert got.outputs[1].flatten().tolist() == [-0.5, -0.3125, -0.125, 0.25]
    assert got.gradients["v_rest"].tolist() == [0.75] * 4  # a - 0.5 / b
    assert got.gradients["a"].item() == pytest.approx(0.0 + 0.25 + 0.5 + 1.0 - 4 * 0.5)  # v_rest - 1 / b, summed
    assert got.gradients["b"].item() == pytest.approx(sum((0.5 * v + 1.0) / 4.0 for v in (0.0, 0.25, 0.5, 1.0)))


def test_gradients_arrive_from_any_subset_of_the_results(loom: Any, generator: torch.Generator) -> None:
    given = inputs(generator, 18, 7)
    for which in range(4):
        loom.agree(pair, given, {"a": torch.tensor(0.8)}, [torch.zeros(7), torch.ones(7)], only=which)
    x, z = (t.to(loom.device).requires_grad_() for t in given)
    for reach in (
        lambda o, s: o[0],
        lambda o, s: o[1],
        lambda o, s: s[0],
        lambda o, s: s[1] * 2.0,
        lambda o, s: o[0] + o[1],
    ):
        grads = []
        for backend in (loom.device, "reference"):
            outputs, ends = pair(x, z, backend=backend)
            grads.append(torch.autograd.grad(reach(outputs, ends).sum(), (x, z), allow_unused=True))
        for got, expected in zip(*grads, strict=True):
            assert loom.distance(torch.zeros_like(x) if expected is None else expected, got) < 1e-6


@pytest.mark.parametrize("wanted", ["x", "z", "v", "a", "x a", "v w b"])
def test_gradients_go_to_any_subset_of_the_arguments(loom: Any, generator: torch.Generator, wanted: str) -> None:
    drawn = [*inputs(generator, 18, 7), torch.zeros(7), torch.ones(7), torch.tensor(0.8), 1.0 + torch.rand(7)]
    leaves = dict(zip(("x", "z", "v", "w", "a", "b"), (d.to(loom.device) for d in drawn), strict=True))
    found = []
    for backend in (loom.device, "reference"):
        on = {n: t.detach().requires_grad_(n in wanted.split()) for n, t in leaves.items()}
        outputs, _ = pair(on["x"], on["z"], state=(on["v"], on["w"]), a=on["a"], b=on["b"], backend=backend)
        (outputs[0] + outputs[1]).sum().backward()
        found.append({n: t.grad for n, t in on.items()})
    for name in leaves:
        assert (found[0][name] is not None) == (name in wanted.split())
        if found[0][name] is not None:
            assert loom.distance(found[1][name], found[0][name]) < 1e-6


def test_one_dtype_for_all_inputs_is_the_wider_one(loom: Any, generator: torch.Generator) -> None:
    x, z = inputs(generator, T, 7)
    (s, y), ends = pair(x.to(loom.device, torch.bfloat16), z.to(loom.device), backend=loom.device)
    assert s.dtype == y.dtype == torch.float32
    assert ends[0].dtype == torch.float32
    (_, y), ends = pair(x.to(loom.device, torch.bfloat16), z.to(loom.device, torch.float64), backend=loom.device)
    assert y.dtype == ends[0].dtype == torch.float64


@step(state={"last": 0.0, "first": 0.5})
def delays(unused: Any, x: Any, last: Any, first: Any) -> Any:
    """Nothing is computed: values move from inputs to states to outputs, and gradients back."""
    return last, first, x, last


def test_values_that_are_only_handed_on(loom: Any, generator: torch.Generator) -> None:
    """GCC made two block copies of the backward loop, in the wrong order."""
    for shape in ((2, 1), (20, 300), (3, 7)):
        given = [torch.randn(shape, generator=generator) for _ in delays.inputs]
        _, got = loom.agree(delays, given)
        assert torch.equal(got.outputs[0][1:], given[1][:-1])
        loom.agree(delays, given, None, [torch.ones(shape[1:]), torch.zeros(shape[1:])])


@step()
def stateless(x: Any, *, gain: Any = 2.0) -> Any:
    return sigmoid(gain * x)


def test_a_step_without_state(loom: Any, generator: torch.Generator) -> None:
    x = torch.randn((18, 7), generator=generator)
    _, got = loom.agree(stateless, [x], {"gain": torch.rand(7, generator=generator)}, rounding=1e-6)
    assert got.states == []
    y, ends = stateless(x.to(loom.device), backend=loom.device)
    assert ends == ()
    assert y.shape == x.shape
