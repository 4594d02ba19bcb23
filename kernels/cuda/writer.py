"""What the CUDA sources of the forward and the backward kernel have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spikeloom.kernels.names import STORAGE, Names
from spikeloom.kernels.printer import Hoisted, divisor_type, invariants, statements
from spikeloom.kernels.program import Program
from spikeloom.kernels.tape import Tape
from spikeloom.kernels.template import Value

STORAGE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
HERE = Path(__file__).parent
_COMMON = HERE / "common.cu"


@dataclass(frozen=True)
class Tuning:
    """What is fixed at compile time beside the program.

    Attributes:
        dtype: torch dtype name of inputs and outputs.
        kinds: one letter per parameter: s(calar by value), u(niform tensor), l(ane: one value per period entry),
            c(hannel: the same, all of one period; neighbouring lanes have neighbouring entries, and all vectors of a
            thread begin with the same one), h(alving: a scalar that is a power of two: dividing by it is multiplying).
        steps: T if known at compile time (short sequences), else 0.
        chunk: K, steps unrolled together; checkpoints are kept every `chunk` steps when T > chunk.
        vector: V, lanes of a thread.
        threads: threads of a block.
        flat: time is the slowest axis in memory.
        wide: lanes need 64-bit indices.
        given: an initial state is passed.
    """

    dtype: str
    kinds: str
    steps: int
    chunk: int
    vector: int
    threads: int
    flat: bool
    wide: bool
    given: bool

    @property
    def single(self) -> bool:
        """All steps fit one chunk."""
        return 0 < self.steps <= self.chunk


class Writer(Names):
    """Names and common parts of one program under one tuning.

    Attributes:
        tape: the tape of the kernel's step functions, which compute `roots`.
        hoisted: what of `roots` follows from parameters alone. Values that depend on a parameter with one value per
            lane are kept per lane of a thread, the others once.
    """

    def __init__(self, program: Program, tuning: Tuning, tape: Tape, roots: Sequence[int]) -> None:
        super().__init__(program, tuning.kinds, lane="v")
        self.tuning = tuning
        self.halving = {n for n, kind in zip(program.params, self.kinds, strict=True) if kind == "h"}
        self.tape = tape
        self.hoisted = invariants(tape, roots, program.params, len(program.tape.nodes), self.halving)
        once, lane = self._split()
        self.values["hoisted_at"] = [
            u if i in fixed else f"{u}_[v]"
            for fixed, values in ((once.nodes, self.hoisted.nodes), (once.divisors, self.hoisted.divisors))
            for i, u in values.items()
        ]
        self.values |= {"head": self._head(), "threads": str(tuning.threads), "walk": self._walk(once)}
        self.values |= {"base": self._part("flat" if tuning.flat else "rows"), "own": self._own(lane)}

    def start(self) -> str:
        """Fill `s*[v]` from the initial state or from rest."""
        if not self.s:
            return ""
        return self._part("given" if self.tuning.given else "resting")

    def _part(self, section: str, **more: Value) -> str:
        return self.fill(_COMMON, section, **more)

    def _split(self) -> tuple[Hoisted, Hoisted]:
        """Hoisted values that all lanes share, and those with one value per lane."""
        lane = {n for n, kind in zip(self.program.params, self.kinds, strict=True) if kind in "lc"}

        def part(per_lane: bool) -> Hoisted:
            def keep(index: int) -> bool:
                return per_lane == any(self.tape.nodes[i].name in lane for i in self.tape.live([index]))

            nodes = {i: u for i, u in self.hoisted.nodes.items() if keep(i)}
            divisors = {i: d for i, d in self.hoisted.divisors.items() if keep(i)}
            return Hoisted(nodes, divisors, self.hoisted.exact)

        return part(False), part(True)

    def _head(self) -> str:
        real, io = STORAGE[self.tuning.dtype]
        return self._part(
            "head",
            program=self.program.name,
            real=real,
            index="unsigned long long" if self.tuning.wide else "unsigned",
            prelude=(HERE / "prelude.cuh").read_text(),
            io=io,
            vector=str(self.tuning.vector),
            chunk=str(self.tuning.chunk),
        )

    def _walk(self, once: Hoisted) -> str:
        steps = self.tuning.steps
        load = {"s": "(real)a.{0}", "h": "(real)a.{0}", "u": "__ldg(a.{0})"}
        return self._part(
            "walk",
            steps=f"constexpr int T = {steps};" if steps else "const int T = (int)a.T;",
            first_channel=self.of_kind("c")[:1],
            channel=self.of_kind("c"),
            shared=self.of_kind("shu"),
            shared_value=[load[k].format(p) for p, k in zip(self.p, self.kinds, strict=True) if k in load],
            **self._compute(once, self.leaf),
        )

    def _own(self, lane: Hoisted) -> str:
        """The same for parameters with one value per lane: arrays over the `V` lanes of the thread."""
        loads = self._part("own", own=self.of_kind("l"))
        if not lane.nodes and not lane.divisors:
            return loads
        leaf = self.leaf | dict(zip(self.program.params, self.at, strict=True))
        return f"{loads}\n{self._part('hoisted', **self._compute(lane, leaf))}"

    def _compute(self, what: Hoisted, leaf: dict[str, str]) -> dict[str, Value]:
        """Statements that compute hoisted values, and each value's name and expression."""
        lines, results = statements(self.tape, [*what.nodes, *what.divisors], leaf)
        cut = len(what.nodes)
        return {
            "line": lines,
            "node": list(what.nodes.values()),
            "node_value": results[:cut],
            "divisor": list(what.divisors.values()),
            "divisor_type": [divisor_type(d) for d in what.divisors.values()],
            "divisor_value": results[cut:],
        }
