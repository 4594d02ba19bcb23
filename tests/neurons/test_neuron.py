"""The module around a step: parameters, copies, pickles, compilation, and what bad input says."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spikeloom
from spikeloom.kernels import detach, spike, step, where
from spikeloom.neurons import (
    ALIF,
    EIF,
    IF,
    ILIF,
    LI,
    LIF,
    PLIF,
    POSITIVE,
    QIF,
    CubaLIF,
    Izhikevich,
    Neuron,
    neuron,
)
from spikeloom.neurons.functional import ilif, lif

CLASSES = [IF, LIF, PLIF, CubaLIF, ALIF, EIF, QIF, Izhikevich, LI, ILIF]
ROOT = Path(__file__).resolve().parents[2]


@neuron(state={"v": 0.0}, limits={"gain": POSITIVE})
def two_in(x: Any, y: Any, v: Any, *, gain: Any = 1.0) -> Any:
    """Two inputs, two outputs."""
    v = 0.5 * v + gain * x * y
    return spike(v - 1.0, "atan"), v, v


@pytest.fixture
def x() -> Tensor:
    return 3 * torch.rand(6, 2, 5, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.parametrize("kind", CLASSES)
class TestEveryNeuron:
    def test_is_stateless_and_continues_from_a_state(self, kind: type[Neuron], x: Tensor) -> None:
        layer = kind()
        whole, last = layer(x, return_state=True)
        assert torch.equal(layer(x), whole)
        first, state = layer(x[:2], return_state=True)
        rest, end = layer(x[2:], state=state, return_state=True)
        assert torch.equal(torch.cat([first, rest]), whole)
        assert all(torch.equal(a, b) for a, b in zip(end, last, strict=True))
        assert all(s.shape == x.shape[1:] and s.dtype == torch.float32 for s in last)

    def test_survives_copies_and_pickles(self, kind: type[Neuron], x: Tensor) -> None:
        layer = kind()
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), layer(x))
            assert repr(twin) == repr(layer)
            assert twin.program is layer.program

    def test_shows_its_values(self, kind: type[Neuron], x: Tensor) -> None:
        layer = kind()
        assert list(layer.values()) == list(layer.step.defaults)
        assert all(f"{name}=" in repr(layer) for name in layer.values())

    def test_is_one_graph_for_torch_compile(self, kind: type[Neuron], x: Tensor) -> None:
        torch._dynamo.reset()  # all neurons share one `forward`, and that is compiled at most 8 times
        layer = kind()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        s, expected = compiled(a), layer(b)
        assert torch.equal(s, expected)
        s.sum().backward()
        expected.sum().backward()
        assert torch.equal(a.grad, b.grad)


class TestValues:
    def test_numbers_stay_numbers_and_may_change_without_a_new_kernel(self, x: Tensor) -> None:
        layer = LIF(tau=np.float32(2.0), v_threshold=1)
        assert layer.tau == 2.0
        assert type(layer.tau) is float
        assert layer.state_dict() == {}
        layer(x)
        program = layer.program
        layer.tau = 3.0
        assert torch.equal(layer(x), LIF(3.0)(x))
        assert layer.program is program

    def test_structure_may_change_too(self, x: Tensor) -> None:
        layer = LIF()
        layer.v_reset = None
        layer.surrogate = "atan"
        assert torch.equal(layer(x), LIF(v_reset=None)(x))
        assert pickle.loads(pickle.dumps(layer)).v_reset is None

    def test_tensors_become_parameters_and_buffers(self, x: Tensor) -> None:
        layer = LIF(nn.Parameter(torch.full((5,), 2.5)), v_threshold=torch.tensor(0.9))
        assert [n for n, _ in layer.named_parameters()] == ["tau"]
        assert [n for n, _ in layer.named_buffers()] == ["v_threshold"]
        layer(x).sum().backward()
        assert layer.tau.grad.shape == (5,)
        assert layer.tau.grad.any()
        other = LIF(nn.Parameter(torch.ones(5)), v_threshold=torch.tensor(1.0))
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), layer(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_parameters_follow_the_network_s_dtype(self, dtype: torch.dtype, x: Tensor) -> None:
        grads = []
        for backend in ("auto", "reference"):
            layer = LIF(nn.Parameter(torch.full((5,), 2.5)), backend=backend).to(dtype)
            layer(x.to(dtype)).sum().backward()
            grads.append(layer.tau.grad)
        assert grads[0].dtype == dtype
        torch.testing.assert_close(*grads)

    def test_alpha_none_is_the_surrogate_s_own(self, x: Tensor) -> None:
        grads = []
        for alpha in (None, 2.0):
            a = x.clone().requires_grad_()
            LIF(surrogate="atan", alpha=alpha)(a).sum().backward()
            grads.append(a.grad)
        assert torch.equal(*grads)

    def test_surrogate_of_ones_own(self, x: Tensor) -> None:
        a = x[:1].clone().requires_grad_()
        IF(surrogate=lambda u, alpha: 0.0 * u + alpha, alpha=0.25)(a).sum().backward()
        assert torch.equal(a.grad, torch.full_like(a, 0.25))

    def test_repr_says_what_is_learned(self) -> None:
        text = repr(LIF(nn.Parameter(torch.tensor(2.5)), torch.ones(3), backend="reference"))
        assert "tau=2.5 (learnable)" in text
        assert "v_threshold=[3] (fixed)" in text
        assert "backend='reference'" in text
        assert "tau=3" in repr(PLIF(3.0))

    def test_plif_keeps_its_time_constant_per_channel(self, x: Tensor) -> None:
        layer = PLIF(torch.tensor([1.5, 2.0, 3.0, 4.0, 5.0]))
        torch.testing.assert_close(layer.tau, torch.tensor([1.5, 2.0, 3.0, 4.0, 5.0]))
        layer(x).sum().backward()
        assert layer.w.grad.shape == (5,)

    def test_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            layer = LIF(nn.Parameter(torch.empty(5)))
        assert "tau=[5]" in repr(layer)


class TestNeuronOfOnesOwn:
    def test_several_inputs_and_outputs(self, x: Tensor) -> None:
        layer = Neuron(two_in, gain=2.0)
        (s, v), (last,) = layer(x, x, return_state=True)
        assert torch.equal(v[-1], last)
        assert torch.equal(s, (v >= 1).float())
        assert repr(layer) == "Neuron(two_in, gain=2.0)"
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x, x)[0], s)

    def test_a_plain_step_will_do(self, x: Tensor) -> None:
        @step(state={"v": "v_reset"})
        def local(x: Any, v: Any, *, tau: Any = 2.0, v_reset: Any = 0.0) -> Any:
            h = v + (x - (v - v_reset)) / tau
            s = spike(h - 1.0)
            return s, where(detach(s), v_reset, h)

        layer = Neuron(local)
        assert torch.equal(layer(x), LIF()(x))
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
        with pytest.raises(pickle.PicklingError, match="local was defined inside a function"):
            pickle.dumps(layer)

    def test_limits_name_parameters(self) -> None:
        with pytest.raises(TypeError, match="limits for \\['tou'\\]"):
            neuron(limits={"tou": POSITIVE})(lambda x, *, tau=1.0: x)

    def test_parameter_names_that_a_module_needs_itself(self) -> None:
        with pytest.raises(TypeError, match="cannot be called 'training'"):
            Neuron(neuron()(lambda x, *, training=1.0: x * training))

    def test_the_example_runs(self) -> None:
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "custom_neuron.py")],
            cwd=ROOT,
            timeout=120,
            capture_output=True,
            text=True,
            env=_environment(),
        )
        assert done.returncode == 0, done.stderr
        before, after = done.stdout.split("loss ")[1].split(",")[0].split(" -> ")
        assert float(after) < 0.5 * float(before)
        assert "kernel = reference" in done.stdout


def test_a_spawned_process_can_unpickle() -> None:
    layer = nn.Sequential(LIF(2.5), PLIF())
    code = (
        "import pickle, sys, torch; net = pickle.load(sys.stdin.buffer); print(net(torch.ones(9, 1, 1)).sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        input=pickle.dumps(layer),
        capture_output=True,
        timeout=120,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr.decode()
    assert float(done.stdout) == layer(torch.ones(9, 1, 1)).sum().item()


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}


BAD_VALUES: list[tuple[Any, type[Exception], str]] = [
    (lambda: LIF(float("nan")), ValueError, "lif: tau must be a number, not NaN; got nan"),
    (lambda: LIF(0.0), ValueError, "lif: tau must be >= 1 time step .*; got 0"),
    (lambda: LIF(-2.0), ValueError, "tau must be >= 1"),
    (lambda: LIF(0.5), ValueError, "tau must be >= 1"),
    (lambda: LIF(torch.tensor([2.0, 0.5])), ValueError, "tau must be >= 1 .*; got a tensor with the entry 0.5"),
    (lambda: LIF(nn.Parameter(torch.tensor([2.0, float("nan")]))), ValueError, "tau must be a number, not NaN"),
    (lambda: LIF(torch.tensor(2)), TypeError, "tau has dtype torch.int64; expected a floating-point tensor"),
    (lambda: LIF("2"), TypeError, "lif does not work with tau='2'"),
    (lambda: LIF(None), TypeError, "lif does not work with tau=None"),
    (lambda: LIF([2.0]), TypeError, "tau must be a number or a tensor, got list"),
    (lambda: LIF(True), TypeError, "tau must be a number or a tensor, got True"),
    (lambda: LIF(v_threshold=float("nan")), ValueError, "v_threshold must be a number, not NaN"),
    (lambda: LIF(v_reset=float("nan")), ValueError, "v_reset must be a number, not NaN"),
    (lambda: LIF(alpha=0.0), ValueError, "alpha must be > 0; got 0"),
    (lambda: LIF(decay_input=1), TypeError, "decay_input must be True or False, got 1.0"),
    (lambda: LIF(surrogate="sigmiod"), ValueError, "unknown surrogate 'sigmiod' \\(did you mean 'sigmoid'"),
    (lambda: LIF(backend="gpu"), ValueError, "unknown backend 'gpu'; known: auto, reference, cpu, cuda"),
    (lambda: PLIF(1.0), ValueError, "init_tau must be > 1 time step"),
    (lambda: PLIF(torch.tensor([2.0, 0.5])), ValueError, "init_tau must be > 1 time step"),
    (lambda: PLIF(float("nan")), ValueError, "init_tau must be > 1 time step"),
    (lambda: CubaLIF(tau_syn=0.0), ValueError, "cuba_lif: tau_syn must be >= 1"),
    (lambda: ALIF(tau_a=0.9), ValueError, "alif: tau_a must be >= 1"),
    (lambda: EIF(delta_T=0.0), ValueError, "eif: delta_T must be > 0"),
    (lambda: QIF(a0=-1.0), ValueError, "qif: a0 must be > 0"),
    (lambda: Izhikevich(tau_w=0.0), ValueError, "izhikevich: tau_w must be >= 1"),
    (lambda: LI(0.3), ValueError, "li: tau must be >= 1"),
    (lambda: ILIF(max_spikes=2.5), ValueError, "ilif: max_spikes must be a whole number >= 1; got 2.5"),
    (lambda: ILIF(v_threshold=0.0), ValueError, "ilif: v_threshold must be > 0"),
    (lambda: ILIF(rounding="up"), ValueError, "unknown rounding 'up'; known: half_even, half_up"),
    (lambda: Neuron(lif, tou=2.0), TypeError, "lif has no parameter 'tou' \\(did you mean 'tau'"),
    (lambda: lif(torch.ones(2, 3), tau=0.2), ValueError, "lif: tau must be >= 1"),
    (lambda: lif(torch.ones(2, 3), v_threshold=float("nan")), ValueError, "v_threshold must be a number, not NaN"),
    (lambda: ilif(torch.ones(2, 3), max_spikes=0), ValueError, "max_spikes must be a whole number"),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD_VALUES)
def test_bad_values(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_a_number_that_goes_bad_later() -> None:
    layer = LIF()
    with pytest.raises(ValueError, match="tau must be a number, not NaN"):
        layer.tau = float("nan")
    assert layer.tau == 2.0
    assert layer.runtime()["tau"] == 2.0


BAD_INPUTS: list[tuple[Any, type[Exception], str]] = [
    (lambda layer: layer(torch.ones(3)), ValueError, r"x has shape \[3\]; expected \[T, \*neurons\] with time first"),
    (lambda layer: layer(torch.tensor(1.0)), ValueError, r"expected \[T, \*neurons\]"),
    (lambda layer: layer(torch.ones(0, 3)), ValueError, "T = 0 time steps"),
    (lambda layer: layer(torch.ones(2, 3, dtype=torch.int64)), TypeError, "x has dtype torch.int64"),
    (lambda layer: layer(torch.ones(2, 3, dtype=torch.bool)), TypeError, "x has dtype torch.bool"),
    (lambda layer: layer(torch.ones(2, 3, dtype=torch.complex64)), TypeError, "x has dtype torch.complex64"),
    (lambda layer: layer(np.ones((2, 3))), TypeError, "x must be a torch tensor"),
    (lambda layer: layer(torch.ones(2, 3), torch.ones(2, 3)), TypeError, r"takes 1 input\(s\) \(x\), got 2"),
    (lambda layer: layer(torch.ones(2, 3), state=(torch.ones(4),)), ValueError, r"state v has shape \[4\]"),
    (lambda layer: layer(torch.ones(2, 3), state=torch.ones(3)), TypeError, "state must be a tuple"),
    (lambda layer: layer(torch.ones(2, 3), state=(torch.ones(3), torch.ones(3))), TypeError, "state must be a tuple"),
    (lambda layer: layer(torch.ones(2, 3), state=(torch.ones(3, device="meta"),)), ValueError, "state v is on meta"),
]


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(("call", "error", "says"), BAD_INPUTS)
def test_bad_inputs(call: Any, error: type[Exception], says: str, backend: str) -> None:
    with pytest.raises(error, match=says):
        call(LIF(backend=backend))


def test_a_backend_for_another_device() -> None:
    with pytest.raises(ValueError, match="backend='cuda' needs tensors on a cuda device, but the input is on cpu"):
        LIF(backend="cuda")(torch.ones(2, 3))


def test_a_parameter_that_does_not_fit_the_neurons() -> None:
    says = r"^lif: parameter tau of shape \[4\] does not broadcast against the neuron axes \[3\]"
    with pytest.raises(ValueError, match=says):
        LIF(torch.full((4,), 2.0))(torch.ones(2, 3))


def test_stream_is_a_public_name() -> None:
    from spikeloom.neurons import Stream

    assert spikeloom.Stream is Stream
