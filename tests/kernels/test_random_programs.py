"""Random step functions: what no one thought of writing, in kernel and reference alike.

A program is drawn from a seed: inputs, states with rest values, parameters as numbers or tensors, and some thirty
operations on whatever was computed before. float64, so that the tolerance is far below any effect of a wrong rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spikeloom.kernels import (
    Step,
    absolute,
    clamp,
    detach,
    exp,
    maximum,
    minimum,
    round,
    sigmoid,
    spike,
    tanh,
    where,
)

OPERATIONS: list[Callable[[Any, Any, Any, float], Any]] = [
    lambda a, b, c, k: a + b,
    lambda a, b, c, k: a - b,
    lambda a, b, c, k: k - a,
    lambda a, b, c, k: k * a,
    lambda a, b, c, k: -a,
    lambda a, b, c, k: tanh(a) * tanh(b),
    lambda a, b, c, k: a / (2.0 + absolute(b)),
    lambda a, b, c, k: k / (2.0 + absolute(b)),
    lambda a, b, c, k: exp(minimum(a, 1.0)),
    lambda a, b, c, k: sigmoid(a),
    lambda a, b, c, k: tanh(a) ** 2,
    lambda a, b, c, k: maximum(a, b),
    lambda a, b, c, k: minimum(a, k),
    lambda a, b, c, k: clamp(a, -1.0, abs(k)),
    lambda a, b, c, k: where((a > b) | ~(c <= k), a, c),
    lambda a, b, c, k: spike(a - k, "atan", 1.5),
    lambda a, b, c, k: detach(a) * tanh(b),
    lambda a, b, c, k: round(a),
]
"""Of three values and a number; none of them grows without bound over the steps."""


def drawn(rng: random.Random) -> Step:
    """A step function: `names` of its arguments, then operations on earlier values, then which of them are results."""
    inputs = [f"x{i}" for i in range(rng.randint(1, 2))]
    states = [f"v{i}" for i in range(rng.randint(0, 2))]
    params = [f"p{i}" for i in range(rng.randint(0, 3))]
    names = [*inputs, *states, *params]
    recipe = [
        (rng.choice(OPERATIONS), [rng.randrange(len(names) + place) for _ in "abc"], rng.choice([0.0, 0.5, -0.3, 1.1]))
        for place in range(rng.randint(10, 40))
    ]
    results = [rng.randrange(len(names) + len(recipe)) for _ in range(rng.randint(1, 3) + len(states))]

    def compute(*values: Any) -> Any:
        known = list(values)
        for operation, places, number in recipe:
            known.append(operation(*(known[p] for p in places), number))
        return tuple(known[r] for r in results)

    scope: dict[str, Any] = {"compute": compute}
    keywords = f", *, {', '.join(params)}" if params else ""
    exec(f"def drawn({', '.join([*inputs, *states])}{keywords}): return compute({', '.join(names)})", scope)
    return Step(scope["drawn"], {v: rng.choice([0.0, 0.3, *params]) for v in states})


@pytest.mark.parametrize("seed", range(6))
def test_a_random_program(loom: Any, seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    made = drawn(rng)
    T, neurons = rng.choice([1, 3, 16, 20, 35]), (2, 3, rng.choice([1, 5, 8]))

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    kinds = [lambda: 0.7, tensor, lambda: tensor(3, 1), lambda: tensor(neurons[-1])]
    values = {name: rng.choice(kinds)() for name in made.defaults}
    state = [tensor(*neurons) for _ in made.states] if rng.random() < 0.5 else None
    loom.agree(made, [tensor(T, *neurons) for _ in made.inputs], values, state, rounding=1e-9, gradient=1e-9)
