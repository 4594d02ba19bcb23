"""Programs: operation counts and equations from the tape, content keys, and the C statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from spikeloom.kernels import SURROGATES, Step, clamp, detach, exp, maximum, round, sigmoid, spike, step, where
from spikeloom.kernels.printer import statements
from spikeloom.neurons import functional


def counted(made: Step, **structure: Any) -> dict[str, int]:
    defaults = {n: v for n, v in made.defaults.items() if v is None or isinstance(v, (bool, str))}
    return made.program({**defaults, **structure}).operations()


def counts(adds: int, multiplies: int, divides: int, compares: int, transcendental: int = 0) -> dict[str, int]:
    return {
        "adds": adds,
        "multiplies": multiplies,
        "divides": divides,
        "compares": compares,
        "transcendental": transcendental,
    }


def test_operations_of_a_lif_with_soft_reset_counted_by_hand() -> None:
    """h = v + (x - v) / tau: 2 adds, 1 divide. s: 1 add, 1 compare. v = h - s v_threshold: 1 add, 1 multiply."""
    assert counted(functional.lif, v_reset=None) == counts(adds=4, multiplies=1, divides=1, compares=1)


def test_operations_of_a_lif_with_attached_hard_reset_counted_by_hand() -> None:
    """h = v + (x - (v - v_reset)) / tau: 3 adds, 1 divide. s: 1 add, 1 compare. (1 - s) h + s v_reset: 2 and 2."""
    assert counted(functional.lif, detach_reset=False) == counts(adds=6, multiplies=2, divides=1, compares=1)


def test_operations_of_a_lif_with_hard_reset_counted_by_hand() -> None:
    """As above, but v = v_reset where s, else h, which moves data only."""
    assert counted(functional.lif) == counts(adds=4, multiplies=0, divides=1, compares=1)


@step(state={"v": 0.0})
def each_kind(x: Any, v: Any, *, w: Any = 1.0, tau: Any = 2.0) -> Any:
    rate = sigmoid(w) / tau  # parameters alone: done once, not per update
    h = v * rate + exp(x)
    unused = h * h * h  # noqa: F841 - nobody reads it
    limited = clamp(round(h), 0.0, maximum(w, 1.0))
    return where(h >= limited, detach(-h), abs(h)), h / tau


def test_operations_on_parameters_and_dead_ones_are_not_counted() -> None:
    """mul, add, exp; round 1, clamp 2, >= 1, abs 1 compares; h / tau; where, detach and the sign are free."""
    assert counted(each_kind) == counts(adds=1, multiplies=1, divides=1, compares=5, transcendental=1)


def test_equations_are_the_recorded_steps_in_order() -> None:
    @step(state={"v": 0.5})
    def leaky(x: Any, v: Any, *, tau: Any = 2.0) -> Any:
        h = v + (x - v) / tau
        return spike(h - 1.0, "atan", 2.0), where(h >= 1.0, 0.0, -h)

    lines = leaky.program({}).equations()
    names = [line.split(" = ")[0] for line in lines]
    for place, name in enumerate(names[:-2]):  # names by order instead of by node number
        lines = [line.replace(name, f"#{place}#") for line in lines]
    assert lines == [
        "#0# = x - v",
        "#1# = #0# / tau",
        "#2# = v + #1#",
        "#3# = #2# - 1",
        "#4# = spike(#3#, 2)",
        "#5# = #2# >= 1",
        "#6# = neg(#2#)",
        "#7# = where(#5#, 0, #6#)",
        "output = #4#",
        "v' = #7#",
    ]


def lif_like(tau_first: bool = True, threshold: float = 1.0, surrogate: Any = "atan", rest: Any = 0.0) -> Step:
    def leaky(x: Any, v: Any, *, tau: Any = 2.0) -> Any:
        h = v + (x - v) / tau if tau_first else v + (x / tau - v / tau)
        s = spike(h - threshold, surrogate)
        return s, where(detach(s), 0.0, h)

    return Step(leaky, {"v": rest})


def test_equal_content_is_one_program_and_any_difference_another() -> None:
    assert lif_like().program({}) is lif_like().program({})
    others = [
        lif_like(tau_first=False),
        lif_like(threshold=1.0 + 2**-52),
        lif_like(surrogate="sigmoid"),
        lif_like(surrogate=lambda u, alpha: alpha * maximum(0.0, 1.0 - abs(u))),
        lif_like(surrogate=lambda u, alpha: alpha * maximum(0.0, 2.0 - abs(u))),
        lif_like(rest=0.5),
        lif_like(rest="tau"),
        lif_like(rest=lambda tau: 2.0 * tau),
    ]
    keys = [made.program({}).key for made in (lif_like(), *others)]
    assert len(set(keys)) == len(keys)


def test_zeros_of_both_signs_and_nearby_numbers_are_different_constants() -> None:
    @step()
    def edges(x: Any) -> Any:
        return x * 0.0, x * -0.0, x + 0.1, x + (0.1 + 2**-56)

    tape = edges.program({}).tape
    constants = [node.value.hex() for node in tape.nodes if node.op == "const"]
    assert len(constants) == len(set(constants)) == 4


def test_structure_is_recorded_once_per_combination() -> None:
    recorded = []

    @step(state={"v": 0.0})
    def choice(x: Any, v: Any, *, soft: Any = True, tau: Any = 2.0) -> Any:
        recorded.append(soft)
        return x + v, (v - x if soft else x) / tau

    for soft, tau in ((True, 1.0), (True, 2.0), (False, 2.0), (True, 3.0), (False, 5)):
        _, structure = choice.settle({"soft": soft, "tau": tau})
        choice.program(structure)
    assert recorded == [True, False]


KEYS = """
from spikeloom.neurons import functional
from spikeloom.kernels.cpu.source import source
import hashlib
for name in ("if_", "lif", "plif", "alif", "cuba_lif", "eif", "izhikevich"):
    made = getattr(functional, name)
    program = made.program(made.settle({})[1])
    text = source(program.key, "s" * len(program.params), "float32")
    print(program.key, hashlib.sha256(text.encode()).hexdigest())
"""


def test_keys_and_sources_are_the_same_in_every_process(python: Callable[..., Any]) -> None:
    """The disk cache hangs on it; Python's own hashes differ from process to process."""
    printed = {python(KEYS, PYTHONHASHSEED=seed).stdout for seed in ("1", "2")}
    assert len(printed) == 1
    lines = printed.pop().splitlines()
    assert len(lines) == 7
    made = functional.lif
    program = made.program(made.settle({})[1])
    assert lines[1].split()[0] == program.key


def test_c_holds_one_statement_per_recorded_operation() -> None:
    """Nothing is folded, merged or reordered on the way into C++."""

    @step(state={"v": 0.0})
    def leaky(x: Any, v: Any, *, tau: Any = 2.0) -> Any:
        twice = (x - v) / tau + (x - v) / tau  # written twice, computed twice
        return v + twice, v + twice

    program = leaky.program({})
    lines, _ = statements(program.tape, [*program.outputs, *program.next], {"x": "x", "v": "v", "tau": "tau"})
    assert [line.removeprefix("const real ") for line in lines] == [
        "t3 = x - v;",
        "t4 = t3 / tau;",
        "t5 = x - v;",
        "t6 = t5 / tau;",
        "t7 = t4 + t6;",
        "t8 = v + t7;",
        "t9 = v + t7;",
    ]


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_a_surrogate_costs_nothing_forward(name: str) -> None:
    def firing(x: Any) -> Any:
        return spike(x - 1.0, name)

    assert Step(firing, {}).program({}).operations() == counts(adds=1, multiplies=0, divides=0, compares=1)
