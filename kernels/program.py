"""A recorded step function: the tape of one time step with the roles of its leaves and roots.

`record` calls a step function once with recording scalars. The result is a `Program`, found again by its `key` from
inside torch operators (`lookup`), because an operator's arguments can only be tensors, numbers and strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spikeloom.kernels import lang
from spikeloom.kernels.tape import Sym, Tape

StepFunction = Callable[..., Any]
Rest = float | str | Callable[..., Any]
"""Where a state rests before the first step: a number, the name of a parameter, or a function of the parameters."""


@dataclass(frozen=True, eq=False)
class Program:
    """One time step: `(inputs, states, params) -> (outputs, next states)`, and the states' rest values.

    Attributes:
        key: content hash; the same step recorded in another process has the same key.
        outputs, next, rest: root nodes on `tape`.
        function: the same step for torch tensors: `function(*inputs, *states, **params) -> outputs + states`.
        rest_values: the rest values for torch tensors, one per state.
    """

    key: str
    name: str
    tape: Tape
    inputs: tuple[str, ...]
    states: tuple[str, ...]
    params: tuple[str, ...]
    outputs: tuple[int, ...]
    next: tuple[int, ...]
    rest: tuple[int, ...]
    function: StepFunction
    rest_values: tuple[Rest, ...]

    def rest_state(self, params: Mapping[str, Any]) -> list[Any]:
        """Rest value of every state for given parameters, as tensors or numbers."""
        return [_rest_value(r, params) for r in self.rest_values]

    def operations(self) -> dict[str, int]:
        """Scalar operations of one update of one neuron: adds, multiplies, divides, compares, transcendental.

        Operations on parameters and constants alone are not counted: they are done once, not per update. `where`
        and `detach` move data and are not counted; `clamp` counts two compares, `sigmoid` one transcendental.
        """
        varying = self._varying()
        counts: Counter[str] = Counter(
            dict.fromkeys(("adds", "multiplies", "divides", "compares", "transcendental"), 0)
        )
        for index in self.tape.live([*self.outputs, *self.next]):
            kind, times = _COST.get(self.tape.nodes[index].op, ("", 0))
            if index in varying and times:
                counts[kind] += times
        return dict(counts)

    def _varying(self) -> set[int]:
        """Nodes that depend on an input or a state."""
        moving = set(self.inputs) | set(self.states)
        varying: set[int] = set()
        for index, node in enumerate(self.tape.nodes):
            if node.name in moving or any(a in varying for a in node.args):
                varying.add(index)
        return varying

    def equations(self) -> list[str]:
        """The step as text, one assignment per line, for documentation."""
        names: dict[int, str] = {}
        lines = []
        for index in self.tape.live([*self.outputs, *self.next]):
            node = self.tape.nodes[index]
            if node.op == "input":
                names[index] = node.name
            elif node.op == "const":
                names[index] = f"{node.value:g}"
            else:
                names[index] = f"t{index}"
                args = [names[a] for a in node.args]
                infix = _INFIX.get(node.op)
                body = f" {infix} ".join(args) if infix else f"{node.op}({', '.join(args)})"
                lines.append(f"t{index} = {body}")
        lines += [f"output = {names[i]}" for i in self.outputs]
        lines += [f"{state}' = {names[i]}" for state, i in zip(self.states, self.next, strict=True)]
        return lines


_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
}
_COST = {
    "add": ("adds", 1),
    "sub": ("adds", 1),
    "mul": ("multiplies", 1),
    "div": ("divides", 1),
    "max": ("compares", 1),
    "min": ("compares", 1),
    "clamp": ("compares", 2),
    "abs": ("compares", 1),
    "lt": ("compares", 1),
    "le": ("compares", 1),
    "gt": ("compares", 1),
    "ge": ("compares", 1),
    "eq": ("compares", 1),
    "ne": ("compares", 1),
    "spike": ("compares", 1),
    "floor": ("compares", 1),
    "round": ("compares", 1),
    "exp": ("transcendental", 1),
    "log": ("transcendental", 1),
    "sqrt": ("transcendental", 1),
    "tanh": ("transcendental", 1),
    "sigmoid": ("transcendental", 1),
}

_PROGRAMS: dict[str, Program] = {}


def record(
    name: str, function: StepFunction, inputs: Sequence[str], rest: Mapping[str, Rest], params: Sequence[str]
) -> Program:
    """Record one step of `function(*inputs, *states, **params)`; the same content gives the same program.

    Raises:
        TypeError, ValueError: the function does something that is not a loom operation, or returns too few values.
    """
    tape = Tape()
    leaves = {n: tape.input(n) for n in (*inputs, *rest, *params)}
    held = {p: leaves[p] for p in params}
    result = function(*(leaves[n] for n in (*inputs, *rest)), **held)
    values = _returned(tape, name, result, list(rest))
    n_out = len(values) - len(rest)
    resting = [_resting(tape, name, state, _rest_value(r, held)) for state, r in rest.items()]
    roots = [v.index for v in (*values, *resting)]
    key = f"{name}-{tape.digest(roots)}-{len(inputs)}{len(rest)}{len(params)}{_surrogates(tape)}"
    if key not in _PROGRAMS:
        _PROGRAMS[key] = Program(
            key,
            name,
            tape,
            tuple(inputs),
            tuple(rest),
            tuple(params),
            tuple(roots[:n_out]),
            tuple(roots[n_out : len(values)]),
            tuple(roots[len(values) :]),
            function,
            tuple(rest.values()),
        )
    return _PROGRAMS[key]


def lookup(key: str) -> Program:
    """The recorded program of a key.

    Raises:
        KeyError: nothing with this key was recorded in this process.
    """
    try:
        return _PROGRAMS[key]
    except KeyError:
        raise KeyError(
            f"no step function with key {key!r} was recorded in this process; build the neuron module (or "
            f"call the neuron function) once before calling the operator directly"
        ) from None


def _returned(tape: Tape, name: str, result: Any, states: list[str]) -> list[Sym]:
    """What a step returned, on the tape: outputs, then new states."""
    held = f" has {len(states)} state{'s' * (len(states) != 1)} ({', '.join(states)}) and" if states else ""
    expected = f"the step function {name!r}{held} must return its outputs" + (
        " and then every new state" if states else ""
    )
    found = list(result) if isinstance(result, tuple) else [result]
    for place, value in enumerate(found, 1):
        if not isinstance(value, (Sym, bool, int, float)):
            what = "None" if value is None else f"a value of type {type(value).__name__}"
            which = "it returned" if not isinstance(result, tuple) else f"value {place} of {len(found)} is"
            raise TypeError(
                f"{expected}; {which} {what}. Return a tuple of values computed from the arguments: "
                f"return {', '.join(['spikes', *(f'new_{state}' for state in states)])}"
            )
    if len(found) <= len(states):
        raise ValueError(f"{expected}; it returned {len(found)} value{'s' * (len(found) != 1)}")
    return [_real(tape, value) for value in found]


def _resting(tape: Tape, name: str, state: str, value: Any) -> Sym:
    """A state's rest value, on the tape."""
    if not isinstance(value, (Sym, bool, int, float)):
        raise TypeError(
            f"{name}: state {state!r} rests at a value of type {type(value).__name__}; expected a number, the name of "
            "a parameter, or a function of the parameters. Another start is given at the call, as state=(...)"
        )
    return _real(tape, value)


def _real(tape: Tape, value: Any) -> Sym:
    symbol = tape.lift(value)
    return lang.where(symbol, 1.0, 0.0) if symbol.node.is_bool else symbol


def _rest_value(rest: Rest, params: Mapping[str, Any]) -> Any:
    if callable(rest):
        return rest(**params)
    return params.get(rest, 0.0) if isinstance(rest, str) else rest


def _surrogates(tape: Tape) -> str:
    """Distinguishes programs that differ in a surrogate alone: the digest of the recorded derivatives."""
    digests = []
    for node in tape.nodes:
        if node.surrogate is not None:
            probe = Tape()
            derivative = probe.lift(node.surrogate(probe.input("u"), probe.input("alpha")))
            digests.append(probe.digest([derivative.index])[:8])
    return "-" + "-".join(digests) if digests else ""
