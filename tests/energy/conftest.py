"""Hand-made counts of a small residual network with attention, for tests of what comes after counting."""

from collections.abc import Callable

import numpy as np
import pytest

from spikeloom.energy.counts import (
    Counts,
    Geometry,
    IntArray,
    Layer,
    MapCount,
    NeuronCount,
    NormCount,
    PairCount,
    PoolCount,
    SumCount,
    Uncounted,
)

Build = Callable[..., Counts]


def draw(random: np.random.Generator, total: int, rate: float, T: int, N: int) -> IntArray:
    """How many of `total` are non-zero, [T, N]; later steps fire more."""
    growth = np.linspace(0.6, 1.2, T)[:, None] * np.ones(N)
    return random.binomial(total, np.clip(rate * growth, 0, 1)).astype(np.int64)


def conv(name: str, kind: str, events: IntArray, size: int, c_in: int, c_out: int, quantum: float = 1.0) -> Layer:
    """A 3x3 convolution with padding 1 on size x size maps; each event reaches about 8.4 taps."""
    border = ((3 * size - 2) / (3 * size)) ** 2
    nominal = size * size * c_in * c_out * 9
    sop = np.floor(events * c_out * 9 * border).astype(np.int64)
    return Layer(
        name,
        "conv2d",
        "param",
        kind,
        quantum,
        sop=sop,
        events=events,
        dense_exact=c_in * c_out * (3 * size - 2) ** 2,
        dense_nominal=nominal,
        out_numel=size * size * c_out,
        in_numel=size * size * c_in,
        geometry=Geometry((3, 3), (1, 1), 1, c_in, c_out, 9 * c_in * c_out, 0),
        sop_nonzero_weight=sop.copy(),
        sop_unit=None if kind == "float" else (sop + sop // 5 if kind in ("integer", "scaled_integer") else sop.copy()),
    )


def neuron(name: str, updates: int, spikes: IntArray) -> NeuronCount:
    """LIF neurons."""
    return NeuronCount(name, "lif", updates, 1, spikes, np.full_like(spikes, updates), spikes.copy())


def linear(name: str, kind: str, quantum: float, events: IntArray, n_in: int, n_out: int) -> Layer:
    """A linear layer with a bias."""
    sop = events * n_out
    return Layer(
        name,
        "linear",
        "param",
        kind,
        quantum,
        sop=sop,
        events=events,
        dense_exact=n_in * n_out,
        dense_nominal=n_in * n_out,
        out_numel=n_out,
        in_numel=n_in,
        bias_adds=n_out,
        geometry=Geometry((), (), 1, n_in, n_out, n_in * n_out, n_out),
        sop_nonzero_weight=sop // 2,
        sop_unit=sop * 2 if kind == "scaled_integer" else sop.copy(),
    )


def matmul(name: str, a: IntArray, b: IntArray) -> Layer:
    """Spikes [16, 8] times spikes [8, 16]."""
    return Layer(
        name,
        "matmul",
        "activation",
        "binary",
        1.0,
        sop=a * b // 8,
        events=a,
        dense_exact=2048,
        dense_nominal=2048,
        out_numel=256,
        in_numel=128,
        kind_b="binary",
        quantum_b=1.0,
        events_b=b,
        in_numel_b=128,
        sop_a=a * 16,
        sop_b=b * 16,
    )


def with_gaps(counts: Counts) -> Counts:
    """Add a layer whose rows could not be told apart, and two operations without a rule."""
    lost = linear("block.lost", "binary", 1.0, np.array([[9_000]], np.int64), 64, 32)
    lost.assigned = False
    lost.notes = ["the leading size 7 is no multiple of T*B = 24"]
    counts.layers.append(lost)
    counts.uncounted += [Uncounted("aten.fft_rfft", "block.mixer", 4, 1024), Uncounted("mylib::scan", "", 1, 4096)]
    return counts


def synthetic(
    T: int = 4, N: int = 6, rate: float = 0.15, seed: int = 0, gaps: bool = False, direct: bool = True
) -> Counts:
    """Direct-encoded (or spiking) input, three convolutions with a residual sum, attention, a pooled head."""
    random = np.random.default_rng(seed)
    image = np.repeat(random.integers(180, 193, (1, N)), T, 0).astype(np.int64)
    if not direct:
        image = draw(random, 192, rate, T, N)
    s1, s2, s3 = (draw(random, 512, r, T, N) for r in (rate, rate * 0.8, rate * 1.1))
    both = np.minimum(s1, s2) // 4
    q, k = draw(random, 128, rate, T, N), draw(random, 128, rate * 1.3, T, N)
    pooled = np.minimum(s3, 120)
    first = conv("stem.conv", "float" if direct else "binary", image, 8, 3, 8)
    first.static_input = direct
    layers = [
        first,
        conv("block.0.conv", "binary", s1, 8, 8, 8),
        conv("block.1.conv", "integer", s1 + s2 - both, 8, 8, 8),
        matmul("block.attention.matmul.0", q, k),
        linear("head", "scaled_integer", 0.25, pooled, 128, 10),
    ]
    aux = [
        NormCount("stem.norm", 512, "stem.conv", 512),
        neuron("stem.fire", 512, s1),
        NormCount("block.0.norm", 512, "block.0.conv", 512),
        neuron("block.0.fire", 512, s2),
        PairCount("block.add", "add", both, s1 + s2 - both, 512, "integer"),
        NormCount("block.late_norm", 512, None),
        neuron("block.1.fire", 512, s3),
        MapCount("block.attention.scale", "scale", 256, "scaled_integer"),
        SumCount("block.attention.sum", q, 128, "integer"),
        PoolCount("pool", "avg_pool2d", s3, 512, 128, "scaled_integer"),
    ]
    setting = {"model": "synthetic", "data": "random numbers of the tests", "device": "cpu"}
    counts = Counts(T, N, layers, aux, setting=setting)
    return with_gaps(counts) if gaps else counts


@pytest.fixture
def build() -> Build:
    """The builder of counts: `build(T=4, N=6, rate=0.15, seed=0, gaps=False, direct=True)`."""
    return synthetic


@pytest.fixture
def golden_case() -> Callable[[str], Counts]:
    """The counts of a golden case by name."""
    from spikeloom_tests.energy.golden_counts import counts_of

    found: Callable[[str], Counts] = counts_of
    return found
