"""`@step`: declare what a neuron does in one time step; get it over all time steps, on every backend.

The decorated function reads its roles off its signature: positional parameters are inputs, except those named in
`state`; keyword-only parameters are parameters of the neuron. At a call, a parameter that is a number or a tensor is a
run-time value (changing it compiles nothing); one that is None, a bool, a string or a function is part of the
structure, and each combination is recorded once.
"""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.program import Program, Rest, record
from spikeloom.kernels.weaving import weave

RuntimeValue = Tensor | float
"""A parameter that kernels take at run time."""


class Step:
    """A one-time-step function and everything woven from it.

    Calling it runs all time steps: `step(*inputs, state=None, backend="auto", **params) -> (outputs, state)`.

    Attributes:
        function: the decorated function, for tensors or recording scalars.
        inputs, states: argument names by role.
        defaults: the parameters' default values.
    """

    def __init__(self, function: Callable[..., Any], state: Mapping[str, Rest]) -> None:
        functools.update_wrapper(self, function)
        signature = inspect.signature(function).parameters.values()
        positional = [p.name for p in signature if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = [p for p in signature if p.kind is p.KEYWORD_ONLY]
        if missing := [s for s in state if s not in positional]:
            raise TypeError(f"{function.__name__}: state {missing} must be positional arguments; got {positional}")
        self.function = function
        self.rest = dict(state)
        self.states = tuple(state)
        self.inputs = tuple(p for p in positional if p not in state)
        self.defaults = {p.name: p.default for p in keywords}
        if not self.inputs or positional != [*self.inputs, *self.states]:
            raise TypeError(
                f"{function.__name__}: write the inputs first, then the states in the order of `state`; got "
                f"inputs {list(self.inputs)} and states {list(self.states)} in the order {positional}"
            )
        self._programs: dict[tuple[Any, ...], Program] = {}

    @property
    def name(self) -> str:
        return str(self.function.__name__)

    def __reduce__(self) -> Any:
        if "<locals>" in self.function.__qualname__:
            raise pickle.PicklingError(
                f"{self.name} was defined inside a function; only a step function at module "
                f"level can be found again by its name, as pickling does"
            )
        return _find_step, (self.function.__module__, self.function.__qualname__)

    def __deepcopy__(self, memo: Any) -> Step:
        return self

    def settle(self, values: Mapping[str, Any]) -> tuple[dict[str, RuntimeValue], dict[str, Any]]:
        """Complete `values` with the defaults and split them into run-time values and structure.

        Raises:
            TypeError: a parameter the step does not have, or one without default that is not given.
        """
        for name in values:
            if name not in self.defaults:
                near = get_close_matches(name, self.defaults, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise TypeError(f"{self.name} has no parameter {name!r}{hint}; it has {', '.join(self.defaults)}")
        merged = {**self.defaults, **values}
        if missing := [n for n, v in merged.items() if v is inspect.Parameter.empty]:
            raise TypeError(f"{self.name} needs a value for {', '.join(missing)}")
        runtime = {n: v if isinstance(v, Tensor) else float(v) for n, v in merged.items() if _is_runtime(v)}
        return runtime, {n: v for n, v in merged.items() if not _is_runtime(v)}

    def program(self, structure: Mapping[str, Any]) -> Program:
        """The recorded step for structural parameters; the other parameters become run-time leaves."""
        return self._recorded(structure)

    @torch.compiler.assume_constant_result
    def _recorded(self, structure: Mapping[str, Any]) -> Program:
        key = tuple((n, structure[n]) for n in self.defaults if n in structure)
        if key not in self._programs:
            runtime = [n for n in self.defaults if n not in structure]
            bound = functools.partial(self.function, **structure) if structure else self.function
            self._programs[key] = record(self.name, bound, self.inputs, self.rest, runtime)
        return self._programs[key]

    def __call__(self, *inputs: Tensor, state: Any = None, backend: str = "auto", **values: Any) -> Any:
        """Run all time steps of inputs [T, *neurons].

        Returns:
            `(output, state)`; a tuple of outputs if the step has several. The state is a tuple of [*neurons] tensors.
        """
        runtime, structure = self.settle(values)
        outputs, final = weave(self.program(structure), inputs, runtime, state=state, backend=backend)
        return (outputs[0] if len(outputs) == 1 else outputs), final


def step(state: Mapping[str, Rest] | None = None) -> Callable[[Callable[..., Any]], Step]:
    """Decorate a one-step function. `state` maps each state to its rest value: a number, the name of a parameter
    (0 when that parameter is None), or a function of the parameters.

    Example:
        >>> @step(state={"v": 0.0})
        ... def leaky(x, v, *, tau=2.0, v_threshold=1.0):
        ...     h = v + (x - v) / tau
        ...     s = spike(h - v_threshold, "sigmoid", 4.0)
        ...     return s, where(detach(s), 0.0, h)
    """
    rest = rest_of("step", state)
    return lambda function: Step(function, rest)


def rest_of(decorator: str, state: Mapping[str, Rest] | None) -> Mapping[str, Rest]:
    """The states that a decorator was given, checked where it is written.

    Raises:
        TypeError: no mapping; a function, where the decorator was written without brackets.
    """
    if state is None or isinstance(state, Mapping):
        return state or {}
    given = f"the function {state.__name__}" if inspect.isfunction(state) else f"a {type(state).__name__}"
    raise TypeError(
        f"@{decorator} got {given} as its states; expected a mapping from each state to its rest value: write "
        f'@{decorator}(state={{"v": 0.0}}), or @{decorator}() for a step without states'
    )


def _is_runtime(value: Any) -> bool:
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)


def _find_step(module: str, qualname: str) -> Step:
    """Unpickle a step by the name it was defined under."""
    import importlib

    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    if not isinstance(found, Step):
        raise TypeError(
            f"{module}.{qualname} is not a step function; pickling needs the decorated function to keep "
            f"its name at module level"
        )
    return found
