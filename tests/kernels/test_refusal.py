"""What is no part of the step language is refused in words that say what to write."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spikeloom import kernels
from spikeloom.kernels import Step, step
from spikeloom.kernels.refusal import FUNCTIONS
from spikeloom.kernels.tape import Tape
from spikeloom.neurons import Neuron, neuron

OUTSIDE = torch.ones(3)
REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "torch.sin(x)": (torch.sin, TypeError, "torch's sin is no part of a step function: the language is .* exp, log"),
    "torch.exp(x)": (torch.exp, TypeError, r"write exp\(\.\.\.\), imported from spikeloom.kernels"),
    "torch.relu(x)": (torch.relu, TypeError, r"write maximum\(x, 0\.0\); the language is"),
    "torch.where": (lambda x: torch.where(x > 0, x, x), TypeError, r"torch's where .* write where\(\.\.\.\)"),
    "torch.stack": (lambda x: torch.cat((x, x)), TypeError, "torch's cat .* one neuron at one time step"),
    "x.sum()": (lambda x: x.sum(), AttributeError, r"\.sum is .* one neuron at one time step, without axes"),
    "x.shape": (lambda x: x.shape, AttributeError, "without axes"),
    "x.sin()": (lambda x: x.sin(), AttributeError, r"\.sin is no part of a step function: the language is"),
    "x.add_(1)": (lambda x: x.add_(1), AttributeError, r"\.add_ changes a tensor in place.*give the result a name"),
    "(x > 0).float()": (lambda x: (x > 0).float(), AttributeError, r"write where\(condition, 1\.0, 0\.0\)"),
    "math.exp(x)": (math.exp, TypeError, "not a Python number while the step is recorded.*functions of math"),
    "float(x)": (float, TypeError, "not a Python number"),
    "int(x)": (int, TypeError, "not a Python number"),
    "range(x)": (lambda x: range(x), TypeError, "not a Python number"),
    "round(x)": (lambda x: round(x), TypeError, r"write round\(\.\.\.\), imported from spikeloom.kernels"),
    "x[0]": (lambda x: x[0], TypeError, "cannot be indexed: it sees one neuron"),
    "list(x)": (lambda x: list(x), TypeError, "cannot be looped over or unpacked"),
    "x @ x": (lambda x: x @ x, TypeError, "@ is no part of a step function"),
    "x // 2": (lambda x: x // 2, TypeError, r"write floor\(a / b\)"),
    "5 % x": (lambda x: 5 % x, TypeError, r"write a - floor\(a / b\) \* b"),
    "2 ** x": (lambda x: 2**x, TypeError, r"write exp\(x \* log\(base\)\)"),
    "tensor * x": (lambda x: OUTSIDE * x, TypeError, "not with Tensor; pass tensors as arguments"),
    "x * tensor": (lambda x: x * OUTSIDE, TypeError, "not with Tensor; pass tensors as arguments"),
    "tensor / x": (lambda x: OUTSIDE / x, TypeError, "not with Tensor; pass tensors as arguments"),
    "torch.maximum": (lambda x: torch.maximum(x, OUTSIDE), TypeError, "not with Tensor; pass tensors as arguments"),
}


@pytest.mark.parametrize("written", REFUSED)
def test_what_is_no_part_of_the_language(written: str) -> None:
    function, error, says = REFUSED[written]
    with pytest.raises(error, match=says):
        Step(lambda x: function(x), {})(torch.ones(2, 3))


def test_an_item_that_is_set() -> None:
    def sets(x: Any) -> Any:
        x[0] = 1.0
        return x

    with pytest.raises(TypeError, match=r"cannot be changed in place: write where\(condition, a, b\)"):
        Step(sets, {})(torch.ones(2, 3))


def test_the_functions_named_are_those_exported() -> None:
    assert set(FUNCTIONS) == set(kernels.__all__) - {"SURROGATES", "Step", "step", "weave"}


def test_a_recording_scalar_can_be_asked_and_copied() -> None:
    x = Tape().input("x")
    assert not hasattr(x, "sum")
    assert not hasattr(x, "__len__")
    assert copy.copy(x).index == x.index


def test_a_decorator_without_brackets() -> None:
    def plain(x: Any, v: Any) -> Any:
        return x, v

    for decorator, name in ((neuron, "neuron"), (step, "step")):
        with pytest.raises(TypeError, match=rf'@{name} got the function plain .* write @{name}\(state={{"v": 0\.0}}\)'):
            decorator(plain)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="@neuron got a list as its states; expected a mapping"):
        neuron(state=["v"])  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"a decorated one-step function, got the function plain; write @neuron\(state="
    ):
        Neuron(plain)  # type: ignore[arg-type]


def test_a_state_that_rests_at_a_tensor() -> None:
    with pytest.raises(TypeError, match="state 'v' rests at a value of type Tensor; expected a number, the name of"):
        Step(lambda x, v: (x, v), {"v": OUTSIDE})(torch.ones(2, 3))  # type: ignore[dict-item]
