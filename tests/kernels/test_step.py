"""`@step`: a neuron of one's own, and what is said about calls and step functions that cannot work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spikeloom.kernels import Step, detach, maximum, spike, step, weave, where
from spikeloom.kernels.backends import BACKENDS


@step(state={"v": "v_reset", "rest": 0.0})
def refractory(
    x: Any, v: Any, rest: Any, *, tau: Any = 2.0, v_threshold: Any = 1.0, v_reset: Any = 0.0, pause: Any
) -> Any:
    """A LIF that pauses after a spike: ten lines, no backward written."""
    awake = rest <= 0.0
    h = where(awake, v + (x - v) / tau, v_reset)
    s = where(awake, spike(h - v_threshold, "atan"), 0.0)
    v = where(detach(s), v_reset, h)
    return s, v, where(detach(s), pause, maximum(rest - 1.0, 0.0))


def test_a_neuron_of_ones_own_fires_by_hand_and_agrees(loom: Any) -> None:
    """Input 3, tau 2: h = 1.5 fires at once, then two steps of pause, again and again."""
    expected, got = loom.agree(refractory, [torch.full((9, 4), 3.0)], {"pause": 2.0, "tau": torch.tensor(2.0)})
    assert got.outputs[0][:, 0].tolist() == [1.0, 0.0, 0.0] * 3
    assert got.states[1].tolist() == [0.0] * 4
    assert expected.gradients["tau"].any()


def test_what_a_step_knows_about_itself() -> None:
    assert refractory.name == refractory.__name__ == "refractory"
    assert "no backward written" in str(refractory.__doc__)
    assert (refractory.inputs, refractory.states) == (("x",), ("v", "rest"))
    assert list(refractory.defaults) == ["tau", "v_threshold", "v_reset", "pause"]


@pytest.fixture(params=["kernel", "reference"])
def backend(request: pytest.FixtureRequest, device: str) -> str:
    """The kernel of the device and, once, the reference: both refuse with the same words."""
    if request.param == "reference" and device == "cuda":
        pytest.skip("the reference was tried on the CPU")
    return device if request.param == "kernel" else "reference"


@pytest.fixture
def x(device: str) -> torch.Tensor:
    return torch.ones(4, 2, 3, device=device)


def test_an_unknown_parameter_is_told_the_nearest_name(x: torch.Tensor, backend: str) -> None:
    with pytest.raises(TypeError, match=r"refractory has no parameter 'v_treshold' \(did you mean 'v_threshold'\?\)"):
        refractory(x, v_treshold=1.0, pause=1.0, backend=backend)
    with pytest.raises(TypeError, match=r"has no parameter 'zzz'; it has tau, v_threshold, v_reset, pause"):
        refractory(x, zzz=1.0, pause=1.0, backend=backend)


def test_a_missing_value_is_named(x: torch.Tensor, backend: str) -> None:
    with pytest.raises(TypeError, match="refractory needs a value for pause"):
        refractory(x, backend=backend)


def test_a_wrong_number_of_inputs_is_counted(x: torch.Tensor, backend: str) -> None:
    with pytest.raises(TypeError, match=r"refractory takes 1 input\(s\) \(x\), got 2"):
        refractory(x, x, pause=1.0, backend=backend)
    with pytest.raises(TypeError, match=r"takes 1 input\(s\) \(x\), got 0"):
        refractory(pause=1.0, backend=backend)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: [1.0, 2.0], TypeError, r"x must be a torch tensor \[T, \*neurons\], got list"),
        (lambda x: x.cpu().numpy(), TypeError, "x must be a torch tensor .* got ndarray"),
        (lambda x: x.int(), TypeError, r"x has dtype torch.int32; .*x\.float\(\)"),
        (lambda x: x > 0, TypeError, r"x has dtype torch.bool; neurons take float32, float64, float16 or bfloat16"),
        (lambda x: x.to(torch.complex64), TypeError, "x has dtype torch.complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), TypeError, "x has dtype torch.float8_e4m3fn"),
        (lambda x: x[0, 0], ValueError, r"x has shape \[3\]; expected \[T, \*neurons\] with time first.*x\[None\]"),
        (lambda x: x.sum(), ValueError, r"x has shape \[\]; expected"),
        (lambda x: x[:0], ValueError, r"T = 0 time steps \(shape \[0, 2, 3\]\); T must be >= 1"),
    ],
)
def test_an_input_that_cannot_be(
    x: torch.Tensor, backend: str, wrong: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        refractory(wrong(x), pause=1.0, backend=backend)


def test_inputs_of_different_shapes_or_devices(x: torch.Tensor, backend: str) -> None:
    @step()
    def product(a: Any, b: Any) -> Any:
        return a * b

    with pytest.raises(
        ValueError, match=r"product: b has shape \[4, 2, 1\] but a has \[4, 2, 3\]; all inputs must have"
    ):
        product(x, x[..., :1], backend=backend)
    with pytest.raises(ValueError, match=r"product: b is on meta but a is on (cpu|cuda:0)"):
        product(x, x.to("meta"), backend=backend)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda v: (v,), TypeError, r"state must be a tuple \(v, rest,\) of 2 tensor\(s\) \[\*neurons\], got 1 value"),
        (lambda v: (v, v, v), TypeError, r"got 3 value\(s\)"),
        (lambda v: torch.stack([v, v]), TypeError, "got one tensor"),
        (
            lambda v: (v, v[:1]),
            ValueError,
            r"state rest has shape \[1, 3\] but the input \[4, 2, 3\] has neurons \[2, 3\]",
        ),
        (lambda v: (v[None], v), ValueError, r"state v has shape \[1, 2, 3\].*one batch size: start from rest"),
        (lambda v: (v.to("meta"), v), ValueError, r"state v is on meta but the input is on .*; move it with state\.to"),
    ],
)
def test_a_state_that_does_not_fit(
    x: torch.Tensor, backend: str, wrong: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        refractory(x, state=wrong(torch.zeros_like(x[0])), pause=1.0, backend=backend)


@pytest.mark.parametrize("shape", [(2,), (4, 2, 3), (1, 4, 2, 3), (2, 1, 3), (3, 3), (0,), (2, 0)], ids=str)
def test_a_parameter_that_does_not_broadcast(x: torch.Tensor, backend: str, shape: tuple[int, ...]) -> None:
    wrong = torch.ones(shape, device=x.device)
    with pytest.raises(
        ValueError,
        match=r"^refractory: parameter tau of shape .* does not broadcast against the neuron axes \[2, 3\] .* "
        r"has shape \[C, 1, 1\]",
    ):
        refractory(x, tau=wrong, pause=1.0, backend=backend)


def test_a_parameter_of_whole_numbers_or_elsewhere(x: torch.Tensor, backend: str) -> None:
    with pytest.raises(TypeError, match=r"parameter tau has dtype torch.int64; expected a floating-point tensor"):
        refractory(x, tau=torch.tensor(2, device=x.device), pause=1.0, backend=backend)
    with pytest.raises(ValueError, match=r"parameter tau is on meta but the input is on .*; move the module with"):
        refractory(x, tau=torch.ones(3, device="meta"), pause=1.0, backend=backend)


def test_one_value_with_more_axes_than_the_neurons_is_taken(loom: Any) -> None:
    loom.agree(refractory, [torch.full((4, 3), 3.0)], {"tau": torch.full((1, 1, 1), 2.5), "pause": 1.0})


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2.0), np.float32(2.0), np.int64(2), torch.tensor(2.0)])
def test_a_number_of_any_kind_is_a_number(x: torch.Tensor, backend: str, number: Any) -> None:
    y, _ = refractory(3.0 * x, tau=number, pause=1.0, backend=backend)
    assert y.sum().item() == 2 * 6


def test_an_unknown_backend_is_told_the_nearest_name(x: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"unknown backend 'refrence' \(did you mean 'reference'\?\); known: auto, ref"
    ):
        refractory(x, pause=1.0, backend="refrence")
    with pytest.raises(ValueError, match="unknown backend"):
        refractory(x, pause=1.0, backend="")


def test_a_backend_of_another_device_is_refused(x: torch.Tensor, device: str) -> None:
    other = "cuda" if device == "cpu" else "cpu"
    with pytest.raises(ValueError, match=rf"backend='{other}' needs tensors on a {other} device, .*x\.to\('{other}'\)"):
        refractory(x, pause=1.0, backend=other)


def test_the_backends_are_these() -> None:
    assert BACKENDS == ("auto", "reference", "cpu", "cuda")


def broken(function: Any, state: Any = None) -> Any:
    """Call a step function that cannot be recorded."""
    return Step(function, state or {})(torch.ones(2, 3))


def test_a_branch_on_a_tensor_value() -> None:
    with pytest.raises(TypeError, match=r"write where\(condition, a, b\) instead of an if on a tensor value"):
        broken(lambda x: x if x > 0 else -x)
    with pytest.raises(TypeError, match=r"write where\(condition, a, b\)"):
        broken(lambda x: where((x > 0) and (x < 1), x, 0.0))
    with pytest.raises(TypeError, match=r"write where\(condition, a, b\)"):
        broken(lambda x: max(x, 0.0))


def test_too_few_results() -> None:
    with pytest.raises(
        ValueError, match=r"'<lambda>' has 2 states \(v, w\) and must return its outputs .* returned 2 val"
    ):
        broken(lambda x, v, w: (v, w), {"v": 0.0, "w": 0.0})
    with pytest.raises(ValueError, match=r"has 1 state \(v\) .* returned 1 value$"):
        broken(lambda x, v: x + v, {"v": 0.0})


def test_arithmetic_on_truth_values_is_refused_where_torch_means_something_else() -> None:
    """torch refuses 1 - (x > 0) and -(x > 0), and takes the sum of two comparisons for `or`."""
    for made in (lambda x: 1.0 - (x > 0), lambda x: (x > 0) - x, lambda x: -(x > 0), lambda x: (x > 0) + (x > 1)):
        with pytest.raises(TypeError, match=r"truth value, not a number .*where\(c, 1\.0, 0\.0\)"):
            broken(made)
    for made in (lambda x: x & (x > 0), lambda x: (x > 0) | x, lambda x: (x > 0) & 1.0):
        with pytest.raises(TypeError, match=r"& and \| join truth values: write x != 0\.0"):
            broken(made)
    with pytest.raises(TypeError, match=r"~ inverts a truth value: write x == 0\.0"):
        broken(lambda x: where(~x, x, 0.0))


def test_arithmetic_on_truth_values_where_torch_agrees(loom: Any, generator: torch.Generator) -> None:
    def mixed(x: Any) -> Any:
        return 2.0 * (x > 0.0) + (x > 1.0) * x, (x > 0.0) / 4.0, (x > 0.0) == (x > 1.0), (x > 0.0) + 1.0

    loom.agree(Step(mixed, {}), [torch.randn((3, 40), generator=generator)])


OUTSIDE = torch.ones(3)


def test_a_tensor_from_outside() -> None:
    with pytest.raises(TypeError, match="not with Tensor; pass tensors as arguments of the step function"):
        broken(lambda x: maximum(x, OUTSIDE))
    for use in (
        lambda x: x * OUTSIDE,
        lambda x: OUTSIDE * x,
        lambda x: OUTSIDE / x,
        lambda x: torch.exp(x),
        lambda x: x + x.mean(),
    ):
        with pytest.raises((TypeError, AttributeError)):
            broken(use)


def test_a_value_kept_from_another_recording() -> None:
    kept = []

    def hoarding(x: Any) -> Any:
        kept.append(x)
        return x + kept[0]

    broken(hoarding)
    with pytest.raises(ValueError, match="a value recorded by another call of the step function was used here"):
        broken(hoarding)


def test_something_that_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"'<lambda>' must return its outputs; it returned None\. Return a tuple"):
        broken(lambda x: None)
    with pytest.raises(TypeError, match="value 2 of 2 is a value of type str"):
        broken(lambda x: (x, "s"))
    with pytest.raises(TypeError, match="it returned a value of type list"):
        broken(lambda x: [x, x])
    with pytest.raises(TypeError, match=r"1 state \(v\) and must .* value 2 of 2 is None.*: return spikes, new_v$"):
        broken(lambda x, v: (x, None), {"v": 0.0})
    with pytest.raises(TypeError, match=r"compute with its arguments and Python numbers, not with NoneType$"):
        broken(lambda x: maximum(x, None))


def test_a_rest_value_that_is_no_parameter_is_zero_and_none_too() -> None:
    @step(state={"v": "start"})
    def from_start(x: Any, v: Any, *, start: Any = None) -> Any:
        return v, v + x

    x = torch.ones(2, 3)
    assert from_start(x)[0][0].tolist() == [0.0] * 3
    assert from_start(x, start=0.25)[0][0].tolist() == [0.25] * 3


def test_signatures_that_cannot_be_read() -> None:
    with pytest.raises(TypeError, match=r"state \['w'\] must be positional arguments; got \['x', 'v'\]"):
        Step(lambda x, v: (x, v), {"w": 0.0})
    with pytest.raises(TypeError, match="write the inputs first, then the states in the order of `state`"):
        Step(lambda v, x: (x, v), {"v": 0.0})
    with pytest.raises(TypeError, match="write the inputs first"):
        Step(lambda x, v, w: (x, v, w), {"w": 0.0, "v": 0.0})
    with pytest.raises(TypeError, match="write the inputs first"):
        Step(lambda v: v, {"v": 0.0})


def test_any_name_may_be_given_to_an_argument(loom: Any, generator: torch.Generator) -> None:
    """C names are made from places, not from the words of the step function."""

    @step(state={"y0": 0.0, "double": "s0"})
    def named(p0: Any, T: Any, real: Any, y0: Any, double: Any, *, s0: Any, gx0: Any, lanes: Any, s0n: Any) -> Any:
        h = y0 * s0 + p0 * gx0
        return h * T, h, double * lanes + s0n * real

    given = [torch.rand((3, 5), generator=generator) for _ in named.inputs]
    values = {name: torch.rand((), generator=generator) for name in named.defaults}
    loom.agree(named, given, values, gradient=1e-5)


@pytest.mark.parametrize("name", ["gy0", "gs0"])
def test_names_of_gradients_may_be_given_to_an_argument(loom: Any, name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def named({name}, v):\n    h = 0.5 * v + {name} * {name}\n    return h, h", scope)
    loom.agree(Step(scope["named"], {"v": 0.0}), [torch.rand(3, 5)])


def test_weave_without_final_states_returns_none_of_them(x: torch.Tensor, backend: str) -> None:
    runtime, structure = refractory.settle({"pause": 1.0})
    outputs, ends = weave(refractory.program(structure), [3.0 * x], runtime, backend=backend, final=False)
    whole, kept = refractory(3.0 * x, pause=1.0, backend=backend)
    assert ends == ()
    assert len(kept) == 2
    assert torch.equal(outputs[0], whole)
