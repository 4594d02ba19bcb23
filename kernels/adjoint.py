"""Reverse-mode differentiation of a tape: the backward step of a neuron is derived, never written.

`derive` copies the forward tape, adds one leaf per incoming gradient and walks the nodes backwards. Conventions are
those of torch (see `lang`), so the reference differentiated by autograd and the derived kernel agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from spikeloom.kernels import lang
from spikeloom.kernels.tape import Node, Sym, Tape

Adjoints = list[tuple[Sym, Sym]]
"""Pairs (argument, contribution to its gradient)."""


def derive(tape: Tape, seeds: Mapping[int, str], leaves: Sequence[str]) -> tuple[Tape, dict[str, int]]:
    """Differentiate `tape`.

    Args:
        tape: the forward program; it is not changed.
        seeds: root node -> name of the leaf that will hold the gradient arriving at this root. Several names for one
            root are joined with "+"; the name "1" is the constant one.
        leaves: input leaves whose gradient is wanted.

    Returns:
        The extended tape and, for each wanted leaf that any root depends on, the node holding its gradient.
    """
    out = tape.copy()
    grads: dict[int, Sym] = {}
    for root, names in seeds.items():
        for name in names.split("+"):
            _accumulate(grads, Sym(out, root), out.const(1.0) if name == "1" else out.input(name))
    for index in reversed(tape.live(list(seeds))):
        node = tape.nodes[index]
        if index in grads and node.op in _RULES:
            args = [Sym(out, a) for a in node.args]
            for argument, contribution in _RULES[node.op](node, grads[index], Sym(out, index), args):
                if not argument.node.is_bool and argument.node.op != "const":
                    _accumulate(grads, argument, contribution)
    found = {out.nodes[i].name: g.index for i, g in grads.items() if out.nodes[i].op == "input"}
    return out, {name: found[name] for name in leaves if name in found}


def _accumulate(grads: dict[int, Sym], node: Sym, contribution: Sym) -> None:
    held = grads.get(node.index)
    grads[node.index] = contribution if held is None else held + contribution


def _add(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], g), (args[1], g)]


def _sub(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], g), (args[1], -g)]


def _mul(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    a, b = args
    return [(a, g * b), (b, g * a)]


def _div(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    a, b = args
    ga = g / b
    return [(a, ga), (b, -(ga * y))]


def _neg(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], -g)]


def _exp(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], g * y)]


def _log(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], g / args[0])]


def _sqrt(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], g / (2.0 * y))]


def _tanh(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], g * (1.0 - y * y))]


def _sigmoid(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], g * (y * (1.0 - y)))]


def _abs(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    x = args[0]
    return [(x, lang.where(x > 0.0, g, lang.where(x < 0.0, -g, 0.0)))]


def _max(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    a, b = args
    tie = lang.where(a == b, 0.5 * g, 0.0)
    return [(a, lang.where(a > b, g, tie)), (b, lang.where(b > a, g, tie))]


def _min(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    a, b = args
    tie = lang.where(a == b, 0.5 * g, 0.0)
    return [(a, lang.where(a < b, g, tie)), (b, lang.where(b < a, g, tie))]


def _clamp(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    x, low, high = args
    return [
        (x, lang.where((x >= low) & (x <= high), g, 0.0)),
        (low, lang.where((x < low) & (low <= high), g, 0.0)),
        (high, lang.where((x > high) | (low > high), g, 0.0)),
    ]


def _where(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    condition, a, b = args
    return [(a, lang.where(condition, g, 0.0)), (b, lang.where(condition, 0.0, g))]


def _straight_through(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    return [(args[0], g)]


def _spike(node: Node, g: Sym, y: Sym, args: list[Sym]) -> Adjoints:
    u, alpha = args
    if node.surrogate is None:
        raise ValueError("a spike was recorded without a surrogate, so it has no derivative")
    return [(u, g * u.tape.lift(node.surrogate(u, alpha)))]


_RULES: dict[str, Callable[[Node, Sym, Sym, list[Sym]], Adjoints]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "abs": _abs,
    "max": _max,
    "min": _min,
    "clamp": _clamp,
    "where": _where,
    "floor": _straight_through,
    "round": _straight_through,
    "spike": _spike,
}
"""One adjoint per operation. `detach` and comparisons have none: gradient stops there."""
