"""Tapes as C: the same statements serve the C++ and the CUDA kernels.

Every statement is one recorded operation on a `const real` (or `const bool`) local, so the compiler sees the recorded
order; kernels are compiled without contraction into fused multiply-adds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from spikeloom.kernels.adjoint import derive
from spikeloom.kernels.program import Program
from spikeloom.kernels.tape import Tape

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
    "and": "&&",
    "or": "||",
}
_QUICK = {"exp", "sigmoid"}
_CALL = {
    "exp": "loom_exp",
    "log": "loom_log",
    "sqrt": "loom_sqrt",
    "tanh": "loom_tanh",
    "sigmoid": "loom_sigmoid",
    "abs": "loom_abs",
    "max": "loom_max",
    "min": "loom_min",
    "clamp": "loom_clamp",
    "floor": "loom_floor",
    "round": "loom_round",
}


@dataclass(frozen=True)
class Hoisted:
    """Values of a tape that depend on parameters alone: computed once per lane, not once per step.

    Attributes:
        nodes: expression of each hoisted node inside the step functions, by node index.
        divisors: expression of the prepared divisor of each division by such a value, by index of the denominator.
        exact: nodes below this index (the forward step) round as the reference does; nodes from it on (derived
            gradients) may use quick division and exponentials.
    """

    nodes: Mapping[int, str]
    divisors: Mapping[int, str]
    exact: int


NOTHING_HOISTED = Hoisted({}, {}, 1 << 30)


def statements(
    tape: Tape, roots: Sequence[int], leaf: Mapping[str, str], hoisted: Hoisted = NOTHING_HOISTED
) -> tuple[list[str], list[str]]:
    """C statements that compute `roots`, and the expression of each root. `leaf` maps leaf names to C expressions."""
    names: dict[int, str] = dict(hoisted.nodes)
    lines: list[str] = []
    for index in _live(tape, roots, hoisted):
        node = tape.nodes[index]
        if index in names:
            continue
        if node.op == "input":
            names[index] = leaf[node.name]
        elif node.op == "const":
            names[index] = constant(node.value)
        elif node.op == "detach":
            names[index] = names[node.args[0]]
        else:
            names[index] = f"t{index}"
            args = [names[a] for a in node.args]
            if node.op == "div" and node.args[1] in hoisted.divisors:
                args[1] = hoisted.divisors[node.args[1]]
            body = _expression(node.op, args, index >= hoisted.exact, node.op == "div" and args[1][0] in "dh")
            lines.append(f"const {'bool' if node.is_bool else 'real'} t{index} = {body};")
    return lines, [names[r] for r in roots]


def _live(tape: Tape, roots: Sequence[int], hoisted: Hoisted) -> list[int]:
    """Nodes that `roots` need, not looking behind hoisted ones."""
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            if index not in hoisted.nodes:
                stack.extend(tape.nodes[index].args)
    return sorted(seen)


def constant(value: float) -> str:
    """A C literal with exactly this value."""
    if value != value:
        return "real(NAN)"
    if abs(value) == float("inf"):
        return f"real({'-' if value < 0 else ''}INFINITY)"
    return f"real({value.hex()})"


def _expression(op: str, args: list[str], quick: bool, prepared: bool) -> str:
    if op == "div" and (quick or prepared):
        return f"{'loom_quick_div' if quick else 'loom_div'}(real({args[0]}), {args[1]})"
    if op in _INFIX:
        return f"{args[0]} {_INFIX[op]} {args[1]}"
    if op in _CALL:
        name = _CALL[op]
        return f"{name.replace('loom_', 'loom_quick_') if quick and op in _QUICK else name}({', '.join(args)})"
    if op == "neg":
        return f"-({args[0]})"
    if op == "not":
        return f"!{args[0]}"
    if op == "nonzero":
        return f"{args[0]} != real(0)"
    if op == "where":
        return f"{args[0]} ? {args[1]} : {args[2]}"
    if op == "spike":
        return f"({args[0]} >= real(0)) ? real(1) : real(0)"
    raise ValueError(f"operation {op!r} cannot be printed")


@dataclass(frozen=True)
class BackwardTape:
    """The derived backward step: gradient roots by leaf name (`inputs`, `states`, `params`), after dead code is cut.

    `rest` holds the gradients of parameters through the rest value of the states (for a call without initial state).
    """

    tape: Tape
    roots: dict[str, int]
    rest_tape: Tape
    rest_roots: dict[str, int]


def backward_tape(program: Program, grad_outputs: Sequence[int]) -> BackwardTape:
    """Derive the backward step. A gradient arrives at every state, and at output `i` none, a tensor or the constant 1
    for `grad_outputs[i]` = 0, 1 or 2."""
    seeds: dict[int, str] = {}
    arriving = [
        (r, f"@gy{i}" if grad_outputs[i] == 1 else "1") for i, r in enumerate(program.outputs) if grad_outputs[i]
    ]
    for root, name in arriving + [(r, f"@gs{j}") for j, r in enumerate(program.next)]:
        seeds[root] = f"{seeds[root]}+{name}" if root in seeds else name
    leaves = (*program.inputs, *program.states, *program.params)
    tape, roots = derive(program.tape, seeds, leaves)
    rest_seeds: dict[int, str] = {}
    for j, root in enumerate(program.rest):
        rest_seeds[root] = f"{rest_seeds[root]}+@gs{j}" if root in rest_seeds else f"@gs{j}"
    rest_tape, rest_roots = derive(program.tape, rest_seeds, program.params)
    return BackwardTape(tape, roots, rest_tape, rest_roots)


def function(
    name: str,
    tape: Tape,
    roots: Sequence[int],
    arguments: Sequence[str],
    leaf: Mapping[str, str],
    results: Sequence[str],
    qualifier: str,
    hoisted: Hoisted = NOTHING_HOISTED,
) -> str:
    """An inline C function: `arguments` are `const real` inputs, `results` are `real&` outputs taking `roots`.

    Hoisted values and prepared divisors follow the arguments, in the order of `Hoisted`.
    """
    lines, values = statements(tape, roots, leaf, hoisted)
    signature = ", ".join(
        [
            *[f"const real {a}" for a in arguments],
            *[f"const real {u}" for u in hoisted.nodes.values()],
            *[f"const {divisor_type(d)}& {d}" for d in hoisted.divisors.values()],
            *[f"real& {r}" for r in results],
        ]
    )
    body = "\n".join(f"    {line}" for line in lines)
    stores = "\n".join(f"    {r} = {v};" for r, v in zip(results, values, strict=True))
    return f"{qualifier} void {name}({signature}) {{\n{body}\n{stores}\n}}\n"


def divisor_type(name: str) -> str:
    """C type of a prepared divisor."""
    return "Halving" if name.startswith("h") else "Divisor"


def invariants(
    tape: Tape, roots: Sequence[int], params: Sequence[str], exact: int, halving: Collection[str] = ()
) -> Hoisted:
    """What of the program `roots` can be hoisted: the last values that depend on `params` and constants alone.

    halving: parameters that are powers of two; a division by one of them is prepared as a multiplication.
    """
    fixed: set[int] = set()
    for index in tape.live(roots):
        node = tape.nodes[index]
        if (
            node.op == "const"
            or (node.op == "input" and node.name in params)
            or (node.args and all(a in fixed for a in node.args))
        ):
            fixed.add(index)
    nodes: dict[int, str] = {}
    divisors: dict[int, str] = {}
    for index in tape.live(roots):
        node = tape.nodes[index]
        if index in fixed:
            continue
        for place, argument in enumerate(node.args):
            if argument in fixed and node.op == "div" and place == 1:
                below = tape.nodes[argument]
                divisors[argument] = f"{'h' if below.op == 'input' and below.name in halving else 'd'}{argument}"
            elif argument in fixed and tape.nodes[argument].args and not tape.nodes[argument].is_bool:
                nodes[argument] = f"u{argument}"
    nodes.update({r: f"u{r}" for r in roots if r in fixed and tape.nodes[r].args})
    return Hoisted(nodes, divisors, exact)
