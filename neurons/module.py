"""From a one-step function to a neuron: `@neuron` checks its parameters' values, `Neuron` makes it an `nn.Module`.

A neuron of your own needs nothing else:

    @neuron(state={"v": 0.0}, limits={"tau": AT_LEAST_ONE})
    def leaky(x, v, *, tau=2.0, v_threshold=1.0):
        h = v + (x - v) / tau
        s = spike(h - v_threshold, "atan")
        return s, h - s * v_threshold

    layer = Neuron(leaky, tau=nn.Parameter(torch.tensor(3.0)))      # spikes = layer(x), x [T, B, ...]
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spikeloom.kernels import Step, weave
from spikeloom.kernels.backends import BACKENDS
from spikeloom.kernels.declare import rest_of
from spikeloom.kernels.program import Program, Rest


@dataclass(frozen=True)
class Limit:
    """What the values of a parameter must satisfy: a test for numbers and tensors alike, and the same in words."""

    holds: Callable[[Any], Any]
    says: str


AT_LEAST_ONE = Limit(lambda value: value >= 1, ">= 1 time step (below 1 a membrane overshoots its input)")
POSITIVE = Limit(lambda value: value > 0, "> 0")
WHOLE = Limit(lambda value: (value >= 1) & (value % 1 == 0), "a whole number >= 1")
_NOT_NAN = Limit(lambda value: value == value, "a number, not NaN")


class NeuronStep(Step):
    """A `kernels.Step` that checks the values of its parameters.

    Calling it runs all time steps: `step(x, state=None, backend="auto", **values) -> (spikes, state)`. Numbers are
    checked at every call, tensors where a module takes them in (a check at every call would wait for the device).
    """

    def __init__(self, function: Callable[..., Any], state: Mapping[str, Rest], limits: Mapping[str, Limit]) -> None:
        super().__init__(function, state)
        if unknown := [name for name in limits if name not in self.defaults]:
            raise TypeError(f"{self.name}: limits for {unknown}, which are no parameters; it has {list(self.defaults)}")
        self.limits = dict(limits)

    def settle(self, values: Mapping[str, Any]) -> tuple[dict[str, Tensor | float], dict[str, Any]]:
        """Complete `values` with the defaults, check numbers and structure, and split into the two.

        Raises:
            TypeError, ValueError: a value that is not of the kind or not in the range the parameter has.
        """
        real = {n: v if isinstance(v, (float, Tensor)) or not _is_number(v) else float(v) for n, v in values.items()}
        runtime, structure = super().settle(real)
        for name, value in runtime.items():
            if isinstance(self.defaults[name], bool):
                raise TypeError(f"{self.name}: {name} must be True or False, got {value!r}")
            if not isinstance(value, Tensor):
                self.check(name, value)
        for name, value in structure.items():
            self._check_structure(name, value)
        return runtime, structure

    def check(self, name: str, value: Tensor | float) -> None:
        """Check one number or every entry of a tensor against the parameter's limits (waits for a tensor's device).

        Raises:
            ValueError: NaN, or out of range.
            TypeError: a tensor that does not hold floating-point numbers.
        """
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise TypeError(f"{self.name}: {name} has dtype {value.dtype}; expected a floating-point tensor")
        for limit in (_NOT_NAN, *([self.limits[name]] if name in self.limits else [])):
            if isinstance(value, Tensor):
                bad = value.detach()[~limit.holds(value)]
                got = f"a tensor with the entry {bad[0].item():g}" if bad.numel() else ""
            else:
                got = "" if limit.holds(value) else f"{value:g}"
            if got:
                raise ValueError(f"{self.name}: {name} must be {limit.says}; got {got}")

    def _check_structure(self, name: str, value: Any) -> None:
        if not (value is None or isinstance(value, (bool, str)) or callable(value)):
            raise TypeError(f"{self.name}: {name} must be a number or a tensor, got {type(value).__name__}")
        if isinstance(value, bool) and _is_number(self.defaults[name]):
            raise TypeError(f"{self.name}: {name} must be a number or a tensor, got {value}")

    def program(self, structure: Mapping[str, Any]) -> Program:
        """The recorded step for structural parameters; says which of them a step cannot be recorded with."""
        try:
            return self._recorded(structure)  # not super(): torch.compile takes a method of self for a constant only
        except TypeError as error:
            unusual = {n: v for n, v in structure.items() if self.defaults[n] is not v}
            if not unusual:
                raise
            given = ", ".join(f"{n}={v!r}" for n, v in unusual.items())
            raise TypeError(f"{self.name} does not work with {given}: {error}") from error


def neuron(
    state: Mapping[str, Rest] | None = None, *, limits: Mapping[str, Limit] | None = None
) -> Callable[[Callable[..., Any]], NeuronStep]:
    """Decorate a one-step function `(x, *states, *, parameters) -> (spikes, *new states)`, as `kernels.step` does.

    Args:
        state: each state and its rest value: a number, the name of a parameter (0 where that is None), or a function
            of the parameters.
        limits: what the values of a parameter must satisfy; NaN is refused for every parameter.
    """
    rest = rest_of("neuron", state)
    return lambda function: NeuronStep(function, rest, limits or {})


class Neuron(nn.Module):
    """Any one-step function as a module over all time steps, without memory between calls.

    Values given as Python numbers stay numbers (`layer.tau` may be changed at any time; nothing is compiled anew);
    an `nn.Parameter` is learned; a tensor becomes a buffer. Tensors broadcast against the neuron axes: a value per
    channel of a [T, B, C, H, W] input has shape [C, 1, 1].

    Args:
        step: what `@neuron` (or `kernels.step`) made.
        backend: `auto`, `reference`, `cpu` or `cuda`.
        values: parameters of the step; those left out keep their defaults.
    """

    program: Program
    """The recorded step."""
    _numbers: dict[str, float]
    _tensors: tuple[str, ...]

    streams = True
    """Takes `state` and `return_state` in `forward`, so that `Stream` can carry its state from call to call."""

    def __init__(self, step: Step, *, backend: str = "auto", **values: Any) -> None:
        super().__init__()
        if not isinstance(step, Step):
            what = f"the function {step.__name__}" if inspect.isfunction(step) else f"a {type(step).__name__}"
            raise TypeError(
                f'Neuron takes a decorated one-step function, got {what}; write @neuron(state={{"v": 0.0}}) above the '
                "function, with each of its states and the value it rests at"
            )
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        self.step = step
        self.backend = backend
        runtime, structure = step.settle(values)
        for name, value in (runtime | structure).items():
            if hasattr(self, name):
                raise TypeError(f"{step.name}: a parameter of a neuron module cannot be called {name!r}; rename it")
            if isinstance(value, Tensor):
                if isinstance(step, NeuronStep) and not value.is_meta:
                    step.check(name, value)
                if not isinstance(value, nn.Parameter):
                    self.register_buffer(name, value)
                    continue
            super().__setattr__(name, value)
        self._settle()

    def forward(self, *inputs: Tensor, state: tuple[Tensor, ...] | None = None, return_state: bool = False) -> Any:
        """Run all time steps.

        Args:
            inputs: one [T, *neurons] tensor per input of the step, usually [T, B, ...].
            state: states before the first step, each [*neurons]; None starts from rest.
            return_state: also return the states after the last step, float32 (float64 for float64 input).

        Returns:
            Spikes [T, *neurons] in the input's dtype (a tuple if the step has several outputs); with `return_state`,
            `(spikes, state)`.
        """
        outputs, final = weave(
            self.program, inputs, self.runtime(), state=state, backend=self.backend, final=return_state
        )
        result = outputs[0] if len(outputs) == 1 else outputs
        return (result, final) if return_state else result

    def values(self) -> dict[str, Any]:
        """All parameters of the step with their present values: numbers, tensors and structure."""
        return {name: getattr(self, name) for name in self.step.defaults}

    def runtime(self) -> Mapping[str, Tensor | float]:
        """The values that kernels of `program` take at run time: numbers and tensors."""
        if not self._tensors:
            return self._numbers
        return {**self._numbers, **{name: getattr(self, name) for name in self._tensors}}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a parameter of the step is checked first, so that `forward` need not look again."""
        if "_numbers" in self.__dict__ and name in self.step.defaults:
            if isinstance(value, Tensor) and isinstance(self.step, NeuronStep) and not value.is_meta:
                self.step.check(name, value)
            self.step.settle({**self.values(), name: value})
            super().__setattr__(name, value)
            self._settle()
        else:
            super().__setattr__(name, value)

    def _settle(self) -> None:
        """Sort the values by kind and record the step here, so that a traced `forward` finds it recorded."""
        runtime, structure = self.step.settle(self.values())
        scalars = {n: v for n, v in runtime.items() if not isinstance(v, Tensor)}
        self.__dict__["_numbers"] = scalars
        self.__dict__["_tensors"] = tuple(n for n, v in runtime.items() if isinstance(v, Tensor))
        self.__dict__["program"] = self.step.program(structure)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("program", "_numbers", "_tensors")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._settle()

    def extra_repr(self) -> str:
        return ", ".join(self._words())

    def _words(self) -> Iterator[str]:
        if type(self) is Neuron:
            yield self.step.name
        for name, value in self.values().items():
            if isinstance(value, Tensor):
                kind = "learnable" if isinstance(value, nn.Parameter) else "fixed"
                shown = f"{value.item():.4g}" if value.numel() == 1 and not value.is_meta else list(value.shape)
                yield f"{name}={shown} ({kind})"
            else:
                yield f"{name}={value!r}"
        if self.backend != "auto":
            yield f"backend={self.backend!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and value is not inspect.Parameter.empty
