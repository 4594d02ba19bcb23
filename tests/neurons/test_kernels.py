"""Every neuron: its kernel against the reference, over surrogates, resets, options, dtypes, shapes and devices.

Same leaf tensors, random cotangents on every output and final state; outputs, states and all gradients are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.kernels import SURROGATES, Step
from spikeloom.neurons import functional as F

GRADIENT_RTOL = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""float: the exponential of surrogates differs by about an ulp and sums are added in another order; over 37 steps and
with cancellation this grows to some 1e-5. Half types: one unit in the last place of the stored gradient, twice."""


@dataclass
class Run:
    """What one backend made of a call: values and gradients, on the CPU."""

    outputs: list[Tensor]
    states: list[Tensor]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)


def run(
    step: Step, device: str, backend: str, x: Tensor, values: Mapping[str, Any], state: Sequence[Tensor] | None
) -> Run:
    """Call and differentiate a step; fresh memory is filled with NaN, so that nothing unwritten can pass."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        leaves[name] = value.detach().to(device).requires_grad_()
        return leaves[name]

    given = None if state is None else tuple(leaf(f"state {i}", s) for i, s in enumerate(state))
    with nan_filled():
        outputs, states = step(
            leaf("x", x), state=given, backend=backend, **{name: leaf(name, value) for name, value in values.items()}
        )
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        results = [*outputs, *states]
        generator = torch.Generator().manual_seed(7)
        cotangents = [
            torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype).to(device) for r in results
        ]
        torch.autograd.backward(results, cotangents)
    return Run(
        [o.detach().cpu() for o in outputs],
        [s.detach().cpu() for s in states],
        {name: None if t.grad is None else t.grad.cpu() for name, t in leaves.items()},
    )


def agree(
    step: Step,
    device: str,
    x: Tensor,
    values: Mapping[str, Any],
    state: Sequence[Tensor] | None = None,
    exact: bool = True,
) -> Run:
    """Assert that the kernel of `device` does what the reference does on the CPU; return what that was.

    `exact`: outputs and states bit for bit. Otherwise (a step with an exponential) states within some ulps; spikes are
    equal still, because no membrane of these inputs lies that near to the threshold.
    """
    expected = run(step, "cpu", "reference", x, values, state)
    got = run(step, device, device, x, values, state)
    for one, other in zip(expected.outputs, got.outputs, strict=True):
        assert torch.equal(one, other), f"outputs differ in {int((one != other).sum())} of {one.numel()} places"
    for one, other in zip(expected.states, got.states, strict=True):
        if exact:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for name, gradient in expected.gradients.items():
        close_gradient(name, gradient, got.gradients[name], GRADIENT_RTOL[x.dtype])
    return expected


def close_gradient(name: str, expected: Tensor | None, got: Tensor | None, rtol: float) -> None:
    """Equal within `rtol` of the value and of the largest entry; a missing gradient counts as zero."""
    if expected is None or got is None:
        given = expected if got is None else got
        assert given is None or not given.any(), f"only one side has a gradient of {name}"
        return
    assert expected.isfinite().all(), name
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        got, expected, rtol=rtol, atol=0.1 * rtol * largest, msg=lambda m: f"gradient of {name}: {m}"
    )


@contextmanager
def nan_filled() -> Iterator[None]:
    """Inside, `torch.empty` gives NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def pairwise(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """A short list of choices, one value per axis, in which every two values of different axes meet."""
    names = list(axes)
    missing = {
        (a, x, b, y)
        for a, b in combinations(range(len(names)), 2)
        for x in range(len(axes[names[a]]))
        for y in range(len(axes[names[b]]))
    }
    everything = list(product(*(range(len(axes[n])) for n in names)))

    def new(row: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(a, row[a], b, row[b]) for a, b in combinations(range(len(row)), 2)} & missing

    rows = []
    while missing:
        best = max(everything, key=lambda row: len(new(row)))
        missing -= new(best)
        rows.append({n: axes[n][i] for n, i in zip(names, best, strict=True)})
    return rows


SIZES = [(1, 3, 5, 11), (5, 1, 5, 7), (37, 2, 5, 7)]
"""[T, B, C, N] with odd neuron counts; 165 lanes are one block of 128 and a rest; 37 steps need two checkpoints."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
RANGES: dict[str, tuple[float, float]] = {
    "tau": (1.5, 3.0),
    "tau_syn": (1.1, 2.5),
    "tau_a": (2.0, 20.0),
    "tau_w": (1.5, 4.0),
    "w": (-1.0, 1.0),
    "v_threshold": (0.8, 1.2),
    "v_reset": (-0.2, 0.3),
    "alpha": (1.0, 4.0),
    "beta": (0.1, 0.5),
    "delta_T": (0.7, 1.3),
    "theta_rh": (0.7, 0.9),
    "v_rest": (-0.1, 0.1),
    "v_c": (0.7, 0.9),
    "a0": (0.8, 1.2),
    "w_rest": (-0.1, 0.1),
    "a": (-0.2, 0.3),
    "b": (0.1, 0.4),
    "norm": (1.0, 4.0),
}
"""Where tensor parameters are drawn from: the neuron fires, and no run-away overflows."""
SHAPES: list[tuple[int, ...]] = [(), (5, 1), (1,), (1, 5, 1), (7,)]
"""Of tensor parameters, against neurons [B, 5, 7]; in the shape with 11, `(7,)` gives way to `(11,)`."""
ALL = {
    "surrogate": sorted(SURROGATES),
    "detach_reset": [True, False],
    "v_reset": ["number", None],
    "kind": ["tensor", "lane"],
}
NEURONS: dict[str, tuple[Step, dict[str, list[Any]], bool]] = {
    "if_": (F.if_, ALL, True),
    "lif": (F.lif, ALL | {"decay_input": [True, False], "kind": ["scalar", "tensor", "lane"], "dtype": DTYPES}, True),
    "plif": (F.plif, ALL | {"decay_input": [True, False]}, False),
    "cuba_lif": (F.cuba_lif, ALL | {"decay_input": [True, False]}, True),
    "alif": (F.alif, ALL | {"decay_input": [True, False]}, True),
    "eif": (F.eif, ALL, False),
    "qif": (F.qif, ALL, True),
    "izhikevich": (F.izhikevich, ALL, True),
    "li": (F.li, {"decay_input": [True, False], "kind": ["tensor", "lane"]}, True),
    "ilif": (
        F.ilif,
        {"rounding": ["half_even", "half_up"], "detach_reset": [True, False], "kind": ["tensor", "lane"]},
        True,
    ),
}
"""Step; options of which every pair is tested; whether states are equal bit for bit (no exponential in the step)."""


def cases() -> Iterator[Any]:
    for name, (_, axes, _) in NEURONS.items():
        for i, case in enumerate(pairwise(**axes)):
            case.setdefault("dtype", DTYPES[i % 4])
            words = [
                str(v).removeprefix("torch.") if k in ("dtype", "kind", "surrogate", "rounding") else f"{k}={v}"
                for k, v in case.items()
            ]
            yield pytest.param(name, case, id="-".join([name, *words]))


def parameters(step: Step, case: Mapping[str, Any], shape: Sequence[int], generator: torch.Generator) -> dict[str, Any]:
    """Values for all parameters of a step: structure from the case, numbers random, as scalars or tensors."""
    values: dict[str, Any] = {}
    for i, (name, default) in enumerate(step.defaults.items()):
        if name in case and case[name] != "number":
            values[name] = case[name]
        elif name == "max_spikes":
            values[name] = torch.tensor(3.0) if case["kind"] == "tensor" else 3.0
        elif name in RANGES:
            low, high = RANGES[name]
            size = () if case["kind"] != "lane" else SHAPES[i % len(SHAPES)]
            size = tuple(shape[-1] if n == 7 else n for n in size)
            value = low + (high - low) * torch.rand(size, generator=generator)
            values[name] = value.item() if case["kind"] == "scalar" else value
        else:
            assert isinstance(default, bool), f"{name} is not covered"
    return values


@pytest.mark.parametrize(("name", "case"), list(cases()))
def test_kernel_does_what_the_reference_does(device: str, name: str, case: dict[str, Any]) -> None:
    step, _, exact = NEURONS[name]
    generator = torch.Generator().manual_seed(len(name))
    fired = 0.0
    for shape in SIZES:
        x = 3.0 * torch.rand(shape, generator=generator) - 1.0
        if name in ("eif", "qif", "izhikevich"):  # with more, a soft reset leaves the membrane in its run-away
            x = 0.4 * x + 0.2
        if shape[0] == 5:  # neuron axes before time in memory, as in a batch-first tensor
            x = x.transpose(0, 2).contiguous().transpose(0, 2)
        state = [torch.rand(shape[1:], generator=generator) for _ in step.states] if shape[0] == 37 else None
        expected = agree(step, device, x.to(case["dtype"]), parameters(step, case, shape, generator), state, exact)
        fired += expected.outputs[0].double().mean().item() / len(SIZES)
        assert all(s.isfinite().all() for s in expected.states)
    assert 0.02 < fired < 2.0, "these inputs test nothing"


def test_pairs_of_options_are_all_there() -> None:
    rows = pairwise(a=[0, 1], b="xyz", c=[True, False])
    assert len(rows) < 12
    for (p, xs), (q, ys) in combinations({"a": [0, 1], "b": "xyz", "c": [True, False]}.items(), 2):
        assert {(r[p], r[q]) for r in rows} == set(product(xs, ys))
