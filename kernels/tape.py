"""The tape: what a one-step function did, operation by operation, in the order it did it.

Calling a step function with `Sym` scalars instead of tensors records a list of nodes. Every node is one scalar
operation on earlier nodes, so the tape is a program in static single assignment form: it can be printed as C, run
in reverse (`adjoint.py`) and counted. Nothing is reordered or folded: the order of the roundings is part of the
meaning of a neuron.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from spikeloom.kernels.refusal import Refusing, refuse_tensor

Surrogate = Callable[..., object]
"""A surrogate derivative: `(u, alpha) -> d spike / d u`, written with loom operations."""

BOOLEAN = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "nonzero"})
"""Operations whose result is a truth value; every other operation gives a real number."""


@dataclass(frozen=True)
class Node:
    """One scalar operation: `op` applied to the nodes numbered `args`.

    Leaves are `const` (value in `value`) and `input` (name in `name`). A `spike` node keeps its surrogate.
    """

    op: str
    args: tuple[int, ...] = ()
    value: float = 0.0
    name: str = ""
    surrogate: Surrogate | None = field(default=None, compare=False)

    @property
    def is_bool(self) -> bool:
        return self.op in BOOLEAN


class Tape:
    """A growing list of nodes."""

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self.nodes: list[Node] = list(nodes)
        self._leaves: dict[tuple[str, str, str], int] = {}

    def copy(self) -> Tape:
        twin = Tape(self.nodes)
        twin._leaves = dict(self._leaves)
        return twin

    def add(self, op: str, *args: Sym, surrogate: Surrogate | None = None) -> Sym:
        self.nodes.append(Node(op, tuple(a.index for a in args), surrogate=surrogate))
        return Sym(self, len(self.nodes) - 1)

    def const(self, value: float) -> Sym:
        return self._leaf("const", value=float(value))

    def input(self, name: str) -> Sym:
        return self._leaf("input", name=name)

    def _leaf(self, op: str, value: float = 0.0, name: str = "") -> Sym:
        key = (op, value.hex(), name)
        if key not in self._leaves:
            self._leaves[key] = len(self.nodes)
            self.nodes.append(Node(op, value=value, name=name))
        return Sym(self, self._leaves[key])

    def lift(self, value: object) -> Sym:
        """`value` as a symbol of this tape: a symbol stays, a Python number becomes a constant."""
        if isinstance(value, Sym):
            if value.tape is not self:
                raise ValueError(
                    "a value recorded by another call of the step function was used here; a step function "
                    "must compute only from its arguments and Python constants"
                )
            return value
        if isinstance(value, (bool, int, float)):
            return self.const(float(value))
        refuse_tensor(value)
        raise TypeError(
            f"a step function can compute with its arguments and Python numbers, not with {type(value).__name__}"
        )

    def live(self, roots: Sequence[int]) -> list[int]:
        """Indices of the nodes that `roots` depend on, in recorded order."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            index = stack.pop()
            if index not in seen:
                seen.add(index)
                stack.extend(self.nodes[index].args)
        return sorted(seen)

    def digest(self, roots: Sequence[int]) -> str:
        """Content hash of the program that computes `roots`."""
        text = ";".join(f"{i}:{n.op},{n.args},{n.value.hex()},{n.name}" for i, n in enumerate(self.nodes))
        return hashlib.sha256(f"{text}|{list(roots)}".encode()).hexdigest()[:16]


_NO_NUMBER = (
    "a comparison gives a truth value, not a number (torch would refuse, or mean `or`): write where(c, 1.0, 0.0)"
)


class Sym(Refusing):
    """A scalar on a tape. Python's operators record; `kernels.lang` holds the functions."""

    __slots__ = ("index", "tape")

    def __init__(self, tape: Tape, index: int) -> None:
        self.tape = tape
        self.index = index

    @property
    def node(self) -> Node:
        return self.tape.nodes[self.index]

    def _binary(self, op: str, other: object, swap: bool = False) -> Sym:
        if not isinstance(other, (Sym, bool, int, float)):
            refuse_tensor(other)
            return NotImplemented
        mine, yours = self, self.tape.lift(other)
        truths = mine.node.is_bool + yours.node.is_bool
        if op in ("and", "or") and truths < 2:
            raise TypeError("& and | join truth values: write x != 0.0 for a number x")
        if (op == "sub" and truths) or (op in ("add", "mul") and truths == 2):
            raise TypeError(_NO_NUMBER)
        return self.tape.add(op, yours, mine) if swap else self.tape.add(op, mine, yours)

    def __add__(self, other: object) -> Sym:
        return self._binary("add", other)

    def __radd__(self, other: object) -> Sym:
        return self._binary("add", other, swap=True)

    def __sub__(self, other: object) -> Sym:
        return self._binary("sub", other)

    def __rsub__(self, other: object) -> Sym:
        return self._binary("sub", other, swap=True)

    def __mul__(self, other: object) -> Sym:
        return self._binary("mul", other)

    def __rmul__(self, other: object) -> Sym:
        return self._binary("mul", other, swap=True)

    def __truediv__(self, other: object) -> Sym:
        return self._binary("div", other)

    def __rtruediv__(self, other: object) -> Sym:
        """As torch divides a number by a tensor: reciprocal times number, two roundings."""
        if not isinstance(other, (bool, int, float)):
            refuse_tensor(other)
            return NotImplemented
        inverse = self._binary("div", 1.0, swap=True)
        return inverse if other == 1 else inverse * other

    def __neg__(self) -> Sym:
        if self.node.is_bool:
            raise TypeError(_NO_NUMBER)
        return self.tape.add("neg", self)

    def __abs__(self) -> Sym:
        return self.tape.add("abs", self)

    def __lt__(self, other: object) -> Sym:
        return self._binary("lt", other)

    def __le__(self, other: object) -> Sym:
        return self._binary("le", other)

    def __gt__(self, other: object) -> Sym:
        return self._binary("gt", other)

    def __ge__(self, other: object) -> Sym:
        return self._binary("ge", other)

    def __eq__(self, other: object) -> Sym:  # type: ignore[override]
        return self._binary("eq", other)

    def __ne__(self, other: object) -> Sym:  # type: ignore[override]
        return self._binary("ne", other)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: object) -> Sym:
        return self._binary("and", other)

    def __or__(self, other: object) -> Sym:
        return self._binary("or", other)

    def __invert__(self) -> Sym:
        if not self.node.is_bool:
            raise TypeError("~ inverts a truth value: write x == 0.0 for a number x")
        return self.tape.add("not", self)

    def __bool__(self) -> bool:
        raise TypeError(
            "the truth value of a membrane is not known while a step function is recorded: write "
            "where(condition, a, b) instead of an if on a tensor value, a & b for `and`, maximum(a, b) for max(a, b)"
        )

    def __pow__(self, exponent: object) -> Sym:
        if isinstance(exponent, int) and not isinstance(exponent, bool) and 1 <= exponent <= 3:
            power = self
            for _ in range(exponent - 1):
                power = power * self
            return power
        raise TypeError(
            f"only powers 1, 2 and 3 are loom operations (torch rounds higher ones differently), got {exponent!r}: "
            "multiply, or write exp(p * log(x))"
        )
