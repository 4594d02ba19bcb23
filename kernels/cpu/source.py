"""C++ source of the forward and backward kernel of a program.

Lanes are walked in blocks of `BLOCK` neighbours; a block keeps its state in first-level cache while it runs through all
time steps, and the loop over its lanes is vectorised. Backward walks chunks of at most `CHUNK` steps from the end: it
reloads the state at the start of the chunk, recomputes the states inside, and goes back through the derived step.

The kernels are written out in forward.cpp, backward.cpp and common.cpp; this file supplies what depends on the program.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from spikeloom.kernels.call import CHUNK
from spikeloom.kernels.names import STORAGE, Names
from spikeloom.kernels.printer import Hoisted, backward_tape, invariants, statements
from spikeloom.kernels.program import lookup
from spikeloom.kernels.tape import Tape

__all__ = ["BLOCK", "CHUNK", "STORAGE", "source"]

BLOCK = 256
_HERE = Path(__file__).parent
_COMMON, _FORWARD, _BACKWARD = _HERE / "common.cpp", _HERE / "forward.cpp", _HERE / "backward.cpp"
_LOAD = {
    "s": "const real {0} = (real)a.{0};",
    "u": "const real {0} = a.{0}[0];",
    "l": "real {0}_[BLOCK]; loom_gather(a.{0}, lane, n, {0}_);",
}
"""How a block loads a parameter, by kind."""
_COLLECT = {
    "u": "sums.g{0}[0] += loom_total(n, g{0}_)",
    "l": "loom_collect(a.{0}, lane, n, g{0}_, sums.g{0}.data())",
}
"""How a block adds up the gradient of a tensor parameter, by kind."""


@lru_cache(maxsize=1024)
def source(key: str, kinds: str, dtype: str) -> str:
    """C++ translation unit with `loom_forward` and `loom_backward` for a program, parameter kinds and torch dtype."""
    names = Names(lookup(key), kinds, lane="l")
    real, io = STORAGE[dtype]
    return names.fill(
        _COMMON,
        "file",
        program=names.program.name,
        real=real,
        prelude=(_HERE / "prelude.h").read_text(),
        io=io,
        block=str(BLOCK),
        chunk=str(CHUNK),
        forward=_forward(names),
        backward=_backward(names),
    )


def _forward(names: Names) -> str:
    program = names.program
    roots, results = [*program.outputs, *program.next], [*names.y, *names.next]
    hoisted = _hoisted(names, program.tape, roots)
    return names.fill(
        _FORWARD,
        "kernel",
        step=names.function("step", program.tape, roots, names.leaves, results, hoisted),
        rest=names.rest(),
        load_p=_load(names),
        hoist=_hoist(names, program.tape, hoisted),
        u=[*hoisted.nodes.values(), *hoisted.divisors.values()],
        start=_start(names),
        driver=names.fill(
            _COMMON, "driver", kernel="forward", struct="Forward", sums="", before="", each_thread="", after=""
        ),
    )


def _backward(names: Names) -> str:
    """`rest` is shared with the forward kernel, which stands above."""
    program, leaf = names.program, names.leaf
    back = backward_tape(program, [1] * len(names.y))
    flow = {leaf[n]: back.roots[n] for n in names.tape_names if n in back.roots}
    rested = {leaf[n]: back.rest_roots[n] for n in program.params if n in back.rest_roots}
    gs = [f"g{s}" for s in names.s]
    arguments = [*names.leaves, *names.gradients]
    results = [*names.y, *names.next]
    q = names.of_kind("ul")
    hoisted = _hoisted(names, back.tape, [*flow.values(), *program.outputs, *program.next])
    return names.fill(
        _BACKWARD,
        "kernel",
        step=names.function("step", back.tape, [*program.outputs, *program.next], names.leaves, results, hoisted),
        step_back=names.function("step_back", back.tape, [*flow.values()], arguments, _results(flow), hoisted),
        rest_back=names.function("rest_back", back.rest_tape, [*rested.values()], [*names.p, *gs], _results(rested)),
        load_p=_load(names),
        hoist=_hoist(names, back.tape, hoisted),
        u=[*hoisted.nodes.values(), *hoisted.divisors.values()],
        start=_start(names),
        flow=list(flow),
        new_gx=[f"g{x}_out" if x in flow else "real(0)" for x in names.x],
        new_gs=[f"g{s}_out" if s in flow else "real(0)" for s in names.s],
        flow_q=[p for p in q if p in flow],
        through_rest=_through_rest(names, list(rested)),
        q=q,
        collect_q=[_COLLECT[names.kinds[names.p.index(p)]].format(p) for p in q],
        driver=_backward_driver(names),
    )


def _results(leaves: dict[str, int]) -> list[str]:
    return [f"g{v}_out" for v in leaves]


def _load(names: Names) -> list[str]:
    return [_LOAD[kind].format(p) for p, kind in zip(names.p, names.kinds, strict=True)]


def _hoisted(names: Names, tape: Tape, roots: list[int]) -> Hoisted:
    """What depends on parameters that all lanes share, and on constants, alone."""
    shared = [n for n, k in zip(names.program.params, names.kinds, strict=True) if k != "l"]
    return invariants(tape, roots, shared, len(names.program.tape.nodes))


def _hoist(names: Names, tape: Tape, hoisted: Hoisted) -> list[str]:
    """Statements that compute the hoisted values and prepare the hoisted divisors."""
    lines, results = statements(tape, [*hoisted.nodes, *hoisted.divisors], names.leaf)
    values = [f"const real {u} = {r};" for u, r in zip(hoisted.nodes.values(), results, strict=False)]
    divisors = zip(hoisted.divisors.values(), results[len(hoisted.nodes) :], strict=True)
    return [*lines, *values, *(f"const Divisor {d} = loom_divisor({r});" for d, r in divisors)]


def _start(names: Names) -> str:
    return names.fill(_COMMON, "start") if names.s else ""


def _through_rest(names: Names, rested: list[str]) -> str:
    if not rested:
        return ""
    summed = [p for p in rested if p in names.of_kind("ul")]
    return names.fill(_BACKWARD, "through_rest", rested=rested, rested_q=summed)


def _backward_driver(names: Names) -> str:
    """The driver, and around it the sums of the gradients of tensor parameters."""
    sizes = {p: f"a.{p}.count" if p in names.of_kind("l") else "1" for p in names.of_kind("ul")}
    return names.fill(
        _COMMON,
        "driver",
        kernel="backward",
        struct="Backward",
        sums="mine,",
        before="std::vector<Sums> all(a.threads);",
        each_thread=names.fill(_BACKWARD, "own_sums", q=list(sizes), q_size=list(sizes.values())),
        after="\n".join(names.fill(_BACKWARD, "add_sums", q=p, q_size=size) for p, size in sizes.items()),
    )
