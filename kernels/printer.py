"""Tapes as C: the same statements serve the C++ and the CUDA kernels.

Every statement is one recorded operation on a `const real` (or `const bool`) local, so the compiler sees the recorded
order; kernels are compiled without contraction into fused multiply-adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spikeloom.kernels.adjoint import derive
from spikeloom.kernels.program import Program
from spikeloom.kernels.tape import Tape

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
          "ne": "!=", "and": "&&", "or": "||"}
_CALL = {"exp": "loom_exp", "log": "loom_log", "sqrt": "loom_sqrt", "tanh": "loom_tanh", "sigmoid": "loom_sigmoid",
         "abs": "loom_abs", "max": "loom_max", "min": "loom_min", "clamp": "loom_clamp", "floor": "loom_floor",
         "round": "loom_round"}


def statements(tape: Tape, roots: Sequence[int], leaf: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """C statements that compute `roots`, and the expression of each root. `leaf` maps leaf names to C expressions."""
    names: dict[int, str] = {}
    lines: list[str] = []
    for index in tape.live(roots):
        node = tape.nodes[index]
        args = [names[a] for a in node.args]
        if node.op == "input":
            names[index] = leaf[node.name]
            continue
        if node.op == "const":
            names[index] = f"real({node.value.hex()})" if abs(node.value) < float("inf") else \
                f"real({'-' if node.value < 0 else ''}INFINITY)"
            continue
        if node.op == "detach":
            names[index] = args[0]
            continue
        names[index] = f"t{index}"
        lines.append(f"const {'bool' if node.is_bool else 'real'} t{index} = {_expression(node.op, args)};")
    return lines, [names[r] for r in roots]


def _expression(op: str, args: list[str]) -> str:
    if op in _INFIX:
        return f"{args[0]} {_INFIX[op]} {args[1]}"
    if op in _CALL:
        return f"{_CALL[op]}({', '.join(args)})"
    if op == "neg":
        return f"-({args[0]})"
    if op == "not":
        return f"!{args[0]}"
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


def backward_tape(program: Program, grad_outputs: Sequence[bool]) -> BackwardTape:
    """Derive the backward step when gradients arrive at the outputs flagged in `grad_outputs` (and at every state)."""
    seeds: dict[int, str] = {}
    arriving = [(r, f"gy{i}") for i, r in enumerate(program.outputs) if grad_outputs[i]]
    for root, name in arriving + [(r, f"gs{j}") for j, r in enumerate(program.next)]:
        seeds[root] = f"{seeds[root]}+{name}" if root in seeds else name
    leaves = (*program.inputs, *program.states, *program.params)
    tape, roots = derive(program.tape, seeds, leaves)
    rest_seeds: dict[int, str] = {}
    for j, root in enumerate(program.rest):
        rest_seeds[root] = f"{rest_seeds[root]}+gs{j}" if root in rest_seeds else f"gs{j}"
    rest_tape, rest_roots = derive(program.tape, rest_seeds, program.params)
    return BackwardTape(tape, roots, rest_tape, rest_roots)


def function(name: str, tape: Tape, roots: Sequence[int], arguments: Sequence[str], leaf: Mapping[str, str],
             results: Sequence[str], qualifier: str) -> str:
    """An inline C function: `arguments` are `const real` inputs, `results` are `real&` outputs taking `roots`."""
    lines, values = statements(tape, roots, leaf)
    signature = ", ".join([f"const real {a}" for a in arguments] + [f"real& {r}" for r in results])
    body = "\n".join(f"    {line}" for line in lines)
    stores = "\n".join(f"    {r} = {v};" for r, v in zip(results, values, strict=True))
    return f"{qualifier} void {name}({signature}) {{\n{body}\n{stores}\n}}\n"
