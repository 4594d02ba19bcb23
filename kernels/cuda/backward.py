"""CUDA source of the backward kernel (backward.cu)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import compress

from spikeloom.kernels.cuda.writer import HERE, Tuning, Writer
from spikeloom.kernels.printer import BackwardTape, backward_tape
from spikeloom.kernels.program import Program, lookup

_FILE = HERE / "backward.cu"
_PARTIAL_SUM = {
    "1": "a.g{0}[self] = sum_{0}[0];",
    "V": '_Pragma("unroll") for (int v = 0; v < V; ++v) a.g{0}[self * V + v] = sum_{0}[v];',
}
"""How a thread writes its partial sum of a parameter, by its number of entries."""


@lru_cache(maxsize=1024)
def backward_source(
    key: str, tuning: Tuning, arriving: tuple[int, ...], wanted: tuple[bool, ...], shared: tuple[bool, ...]
) -> str:
    """CUDA source of `extern "C" backward`.

    Args:
        arriving: which gradients come in (outputs, then final states): 0 none, 1 a tensor, 2 the constant 1.
        wanted: which gradients go out: inputs, initial states, then every parameter of the program.
        shared: per parameter, whether the `V` lanes of a thread share one value (one partial sum instead of V).
    """
    return _Backward(lookup(key), tuning, arriving, wanted, shared).source()


class _Backward(Writer):
    """The backward kernel of one program, tuning and set of gradients.

    Attributes:
        flow: root on the backward tape of every leaf that a gradient reaches through the step and that needs one.
        rested: the same for parameters and the rest state.
        sums: entries of every wanted parameter's partial sum, "1" or "V".
    """

    def __init__(
        self,
        program: Program,
        tuning: Tuning,
        arriving: Sequence[int],
        wanted: Sequence[bool],
        shared: Sequence[bool],
    ) -> None:
        n_in, n_out, n_s = len(program.inputs), len(program.outputs), len(program.states)
        self.back = backward_tape(program, arriving[:n_out])
        needed = _needed(program, self.back, wanted)
        super().__init__(program, tuning, self.back.tape, [*needed.values(), *program.next])
        self.want_x = list(compress(self.x, wanted))
        self.want_s = list(compress(self.s, wanted[n_in:]))
        self.sums = {
            p: "1" if same else "V" for p, want, same in zip(self.p, wanted[n_in + n_s :], shared, strict=True) if want
        }
        self.gy = [g for g, flag in zip(self.gradients, arriving[:n_out], strict=False) if flag == 1]
        self.final = arriving[n_out:]
        self.flow = {self.leaf[n]: root for n, root in needed.items()}
        rests = {} if tuning.given else self.back.rest_roots
        self.rested = {self.leaf[n]: root for n, root in rests.items() if self.leaf[n] in self.sums}
        self.values |= {"gy": self.gy, "member": [*self.x, *self.gy], "flow": list(self.flow), "want_x": self.want_x}

    def source(self) -> str:
        """The translation unit."""
        return self.fill(
            _FILE,
            "kernel",
            functions=self._functions(),
            want_p=list(self.sums),
            width=list(self.sums.values()),
            arrive=self._arrive(),
            body=self._body(),
            through_rest=self._through_rest(),
            want_s=self.want_s,
            partial_sum=[_PARTIAL_SUM[width].format(p) for p, width in self.sums.items()],
        )

    def _functions(self) -> str:
        tape, gs = self.tape, [f"g{s}" for s in self.s]
        flow, rested = list(self.flow.values()), list(self.rested.values())
        arguments, results = [*self.leaves, *self.gy, *gs], [f"{v}_out" for v in self.flow]
        return "".join(
            [
                self.function("step", tape, self.program.next, self.leaves, self.next, self.hoisted),
                self.rest(),
                self.function("step_back", tape, flow, arguments, results, self.hoisted),
                self.function(
                    "rest_back", self.back.rest_tape, rested, [*self.p, *gs], [f"{v}_out" for v in self.rested]
                ),
            ]
        )

    def _arrive(self) -> str:
        """Gradients of the final states."""
        values = [f"__ldg(a.g{s}n + lane + v)" if f else "real(0)" for s, f in zip(self.s, self.final, strict=True)]
        return self.fill(_FILE, "arrive", final_gs=values) if self.s else ""

    def _body(self) -> str:
        """All steps of a thread's lanes."""
        if self.tuning.single:
            return self.fill(_FILE, "single", chunk=self._chunk(self.start()))
        start = self.fill(_FILE, "restart", start=self.start()) if self.s else ""
        return self.fill(
            _FILE,
            "long",
            ahead=self.fill(_FILE, "ahead"),
            chunk=self._chunk(start),
            ragged_chunk=self._chunk(start, guard="if (first + k < T)"),
        )

    def _chunk(self, start: str, guard: str = "") -> str:
        summed = [p for p in self.sums if p in self.flow]
        return self.fill(
            _FILE,
            "chunk",
            start=start,
            recompute=self.fill(_FILE, "recompute") if self.s else "",
            guard=guard,
            new_gx=[f"{x}_out" if x in self.flow else "real(0)" for x in self.want_x],
            new_gs=[f"{s}_out" if s in self.flow else "real(0)" for s in self.s],
            flow_p=summed,
            flow_entry=self._entries(summed),
        )

    def _through_rest(self) -> str:
        if not self.rested:
            return ""
        rested = list(self.rested)
        return self.fill(_FILE, "through_rest", rested=rested, rested_entry=self._entries(rested))

    def _entries(self, params: list[str]) -> list[str]:
        """Which entry of its partial sum a parameter's gradient goes to."""
        return ["0" if self.sums[p] == "1" else "v" for p in params]


def _needed(program: Program, back: BackwardTape, wanted: Sequence[bool]) -> dict[str, int]:
    """Gradient root of every leaf that needs one; states always do, for the step before."""
    names = (*program.inputs, *program.states, *program.params)
    return {
        n: back.roots[n]
        for n, want in zip(names, wanted, strict=True)
        if n in back.roots and (want or n in program.states)
    }
