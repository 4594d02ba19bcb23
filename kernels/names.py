"""C names of a program's values, the same in the C++ and the CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spikeloom.kernels.printer import NOTHING_HOISTED, Hoisted, function
from spikeloom.kernels.program import Program
from spikeloom.kernels.tape import Tape
from spikeloom.kernels.template import Value, fill

STORAGE = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "bfloat16": ("float", "bf16"),
    "float16": ("float", "fp16"),
}
"""torch dtype -> (arithmetic type, storage type)."""
_PARAM_TYPE = {"s": "double", "h": "double", "u": "const real*", "l": "LaneParam", "c": "LaneParam"}


class Names:
    """Inputs are x0, x1, ..., outputs y*, states s*, parameters p*; a new state is s*n, and a gradient begins with g.

    Attributes:
        kinds: one letter per parameter: s(calar by value), u(niform tensor), l(ane: one value per period entry); on a
            GPU also h(alving: a scalar that is a power of two) and c(hannel: `cuda.writer.Tuning`).
        leaf: leaf name on the tape -> C name; "@" marks an arriving gradient, so that no parameter can be called so.
        at: parameters inside a loop over the lanes of a block or thread, whose variable is `lane`.
        values: what the templates can mention (`template.fill`).
    """

    def __init__(self, program: Program, kinds: str, lane: str) -> None:
        self.program = program
        self.kinds = kinds
        self.x = [f"x{i}" for i in range(len(program.inputs))]
        self.y = [f"y{i}" for i in range(len(program.outputs))]
        self.s = [f"s{j}" for j in range(len(program.states))]
        self.p = [f"p{k}" for k in range(len(program.params))]
        self.next = [f"{s}n" for s in self.s]
        self.gradients = [f"g{v}" for v in (*self.y, *self.s)]
        self.tape_names = (*program.inputs, *program.states, *program.params)
        self.leaf = dict(zip(self.tape_names, self.leaves, strict=True)) | {f"@{g}": g for g in self.gradients}
        self.at = [f"{p}_[{lane}]" if k in "lc" else p for p, k in zip(self.p, kinds, strict=True)]
        self.values: dict[str, Value] = {
            "x": self.x,
            "y": self.y,
            "s": self.s,
            "j": [str(j) for j in range(len(self.s))],
            "p": self.p,
            "p_type": [_PARAM_TYPE[k] for k in kinds],
            "p_at": self.at,
        }

    @property
    def leaves(self) -> list[str]:
        """What a step function takes, in order."""
        return [*self.x, *self.s, *self.p]

    def of_kind(self, letters: str) -> list[str]:
        """Parameters of these kinds."""
        return [p for p, k in zip(self.p, self.kinds, strict=True) if k in letters]

    def function(
        self,
        name: str,
        tape: Tape,
        roots: Sequence[int],
        arguments: Sequence[str],
        results: Sequence[str],
        hoisted: Hoisted = NOTHING_HOISTED,
    ) -> str:
        """An inline C function of a tape's roots (`printer.function`)."""
        return function(name, tape, roots, arguments, self.leaf, results, "LOOM_INLINE", hoisted)

    def rest(self) -> str:
        """C function `rest`: from the parameters to the states before the first step."""
        return self.function("rest", self.program.tape, self.program.rest, self.p, self.next)

    def fill(self, file: Path, section: str, **more: Value) -> str:
        """A section of a template with these names and `more`."""
        return fill(file, section, self.values | more)
