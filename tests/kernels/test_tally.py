"""Counting: hand-counted rows, the reference against loops over elements, the kernels against the reference.

The CUDA kernel also runs on the CPU, with fibers for threads, and is compiled by nvcc where there is one.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeloom_tests.kernels.waits import no_waiting
from torch import Tensor

from spikeloom.kernels.cpu import build
from spikeloom.kernels.tally import BEYOND_ONE, NEGATIVE, NON_FINITE, OVERFLOW, SLOTS, Table, Tally, cuda, front, tally
from spikeloom.kernels.tally.table import ROOM, SMALL, home

NVCC = shutil.which("nvcc")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
VALUES = (0.0, -0.0, 1.0, -1.0, 2.0, 0.25, -0.25, 64.0, 65.0, 1 / 9, 1e-40, 1e-7, 300.5, math.nan, math.inf, -math.inf)
"""1e-40 and 1e-7: subnormal in float32 and bfloat16, and in float16."""


def spikes(shape: Sequence[int], rate: float = 0.2, seed: int = 0) -> Tensor:
    return (torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) < rate).float()


def mixed(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Mostly spikes in the first half, all of `VALUES` in the second."""
    generator = torch.Generator().manual_seed(seed)
    x = spikes(shape, 0.3, seed).flatten().to(torch.float64)
    drawn = torch.tensor(VALUES, dtype=torch.float64)[torch.randint(len(VALUES), x.shape, generator=generator)]
    x[len(x) // 2 :] = drawn[len(x) // 2 :]
    return x.to(dtype).reshape(tuple(shape))


def weights(n: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 5000, (n,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def options(outer: int, inner: int, fan: str | None, pruned: str | None, affine: str | None) -> dict[str, Any]:
    """Arguments of `tally` with maps on the given axes."""
    sizes = {"inner": inner, "outer": outer, "full": outer * inner}
    made: dict[str, Any] = {}
    if fan:
        made |= {"fan": weights(sizes[fan]), "fan_on": fan}
    if pruned:
        made["pruned"] = weights(sizes[pruned], 2)
    if affine:
        scale = torch.tensor([0.5, 0.1, 3.0])[torch.arange(sizes[affine]) % 3]
        made |= {"affine": (scale, -scale * (torch.arange(sizes[affine]) % 2)), "affine_on": affine}
    return made


def by_value(table: Table, levels: Tensor | None, integers: bool = False) -> dict[float, list[int]]:
    """Levels per row by magnitude, where there are any; with `integers` those of 1 ... 64 alone."""
    assert levels is not None
    assert not levels[:, 0].any()
    magnitudes, sums = table.magnitudes(), levels.cpu()
    slots = range(1, SMALL + 1) if integers else range(1, SLOTS)
    return {float(magnitudes[s]): sums[:, s].tolist() for s in slots if sums[:, s].any()}


def moved(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(moved(v, device) for v in value)
    return value.to(device) if isinstance(value, Tensor) else value


def agree(device: str, xs: Sequence[Tensor], outer: int, inner: int, *, levels: bool, **maps: Any) -> list[Tally]:
    """The kernel of the device gives the reference's integers in a row of calls, which may share a table."""
    there = {name: moved(value, device) for name, value in maps.items()}
    expected_table, table = (Table.new(d) if levels else None for d in ("cpu", device))
    results = []
    for x in xs:
        expected = tally(x, outer, inner, table=expected_table, backend="reference", **maps)
        got = tally(x.to(device), outer, inner, table=table, backend=device, **there)
        for name in ("events", "terms", "pruned"):
            one, other = getattr(expected, name), getattr(got, name)
            assert (one is None) == (other is None)
            assert one is None or (other.dtype == torch.int64 and torch.equal(one, other.cpu())), name
        if expected_table is not None and table is not None:
            assert expected_table.flags.tolist() == table.flags.tolist()
            full = bool(table.flags[OVERFLOW])
            assert by_value(expected_table, expected.levels, full) == by_value(table, got.levels, full)
            assert len(dict(table.values())) == len(set(dict(table.values()).values())), "a value has two slots"
        results.append(got)
    return results


@pytest.fixture(params=["cpu", "reference", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def on(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def test_hand_counted(backend: str) -> None:
    """Two rows of [outer 2, inner 3]; fan-outs 1, 10, 100."""
    rows = [[[1.0, 0.0, 2.0], [0.5, -0.5, -0.0]], [[0.0, 64.0, 1.0], [math.nan, 65.0, 0.0]]]
    device = on(backend)
    x, table = torch.tensor(rows, device=device), Table.new(device)
    fan = torch.tensor([1, 10, 100], dtype=torch.int32, device=device)
    pruned = torch.tensor([0, 1, 2, 3, 4, 5], dtype=torch.int32, device=device)
    found = tally(x, 2, 3, table=table, fan=fan, pruned=pruned, backend=backend)
    assert found.pruned is not None
    assert found.events.tolist() == [4, 4]
    assert found.terms.tolist() == [1 + 100 + 1 + 10, 10 + 100 + 1 + 10]
    assert found.pruned.tolist() == [0 + 2 + 3 + 4, 1 + 2 + 3 + 4]
    expected = {1.0: [1, 100], 2.0: [100, 0], 0.5: [11, 0], 64.0: [0, 10], 65.0: [0, 10]}
    assert by_value(table, found.levels) == expected
    assert table.values() == sorted([(home(struct.unpack("q", struct.pack("d", v))[0]), v) for v in (0.5, 65.0)])
    flags = table.flags.tolist()
    assert [flags[f] for f in (OVERFLOW, NON_FINITE, NEGATIVE, BEYOND_ONE)] == [0, 1, 1, 1]


def brute(
    x: Tensor, fan: Any = None, fan_on: str = "", pruned: Any = None, affine: Any = None, affine_on: str = ""
) -> Any:
    """Element by element of [rows, outer, inner], in Python: per row events, terms, pruned, levels by magnitude."""
    found = []
    for row in x:
        events, terms, kept, levels = 0, 0, 0, Counter[float]()
        for place, (o, i) in enumerate(itertools.product(range(x.shape[1]), range(x.shape[2]))):
            value = row[o, i]
            if affine:
                scale, shift = (part[o if affine_on == "outer" else i] for part in affine)
                real = torch.promote_types(x.dtype, torch.float32)
                value = value.to(real) * scale.to(real) + shift.to(real)
            if value != 0:
                weight = 1 if fan is None else int(fan[o if fan_on == "outer" else i])
                events, terms = events + 1, terms + weight
                kept += 0 if pruned is None else int(pruned[place % len(pruned)])
                levels[abs(row[o, i].item())] += weight if row[o, i].isfinite() else 0
        found.append([events, terms, kept, {v: n for v, n in levels.items() if n}])
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_counts_what_a_loop_counts(dtype: torch.dtype) -> None:
    x = mixed((3, 4, 9), dtype)
    for places in itertools.product((None, "inner", "outer"), (None, "inner", "full"), (None, "inner", "outer")):
        maps = options(4, 9, *places)
        table = None if places[2] else Table.new("cpu")
        found = tally(x, 4, 9, table=table, backend="reference", **maps)
        assert (found.terms is found.events) == (places[0] is None)
        values = {} if table is None else by_value(table, found.levels)
        for r, (events, terms, kept, levels) in enumerate(brute(x, **maps)):
            assert (found.events[r], found.terms[r]) == (events, terms)
            assert (found.pruned is None) if places[1] is None else (found.pruned[r] == kept)
            assert table is None or {v: sums[r] for v, sums in values.items() if sums[r]} == levels


TABLED = [(None, None, None), ("inner", "full", None), ("outer", "inner", None)]
SCALED = [("inner", None, None), ("inner", "full", "outer"), ("outer", None, "inner")]
SIZES = [(3, 7, 13), (4, 64, 48), (2, 1, 70001), (1, 40, 2000), (1, 30000, 3)]
ODD = [(1, 1, 1), (37, 1, 1), (2, 3, 1030), (300, 2, 5)]
CASES = [*itertools.product(DTYPES, SIZES), *itertools.product(DTYPES[:1], ODD)]


@pytest.mark.parametrize(("dtype", "size"), CASES, ids=str)
def test_kernels_give_the_integers_of_the_reference(device: str, dtype: torch.dtype, size: Sequence[int]) -> None:
    """Rows, outer, inner; a table over three calls."""
    binary, others = spikes(size).to(dtype), mixed(size, dtype)
    for places in (*TABLED, *SCALED):
        maps = options(size[1], size[2], *places)
        agree(device, [binary, others, binary], size[1], size[2], levels=places in TABLED, **maps)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_call_on_the_cpu(data: st.DataObject) -> None:
    outer, inner = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    rows, dtype = data.draw(st.integers(0, 5)), data.draw(st.sampled_from(DTYPES))
    pool = data.draw(st.lists(st.one_of(st.sampled_from(VALUES), st.floats(width=32)), min_size=1, max_size=12))
    places = torch.randint(len(pool), (2, rows, outer, inner), generator=torch.Generator().manual_seed(len(pool)))
    xs = torch.tensor(pool, dtype=torch.float64).to(dtype)[places]
    maps = [data.draw(st.sampled_from((None, "inner", other))) for other in ("outer", "full", "outer")]
    agree("cpu", list(xs), outer, inner, levels=maps[2] is None, **options(outer, inner, *maps))


@pytest.mark.parametrize("threads", [1, 4])
def test_levels_of_many_values_and_overflow(device: str, threads: int) -> None:
    """The table holds ROOM values, not one more; integers up to 64 and all sums stay exact behind that."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = torch.arange(ROOM, dtype=torch.float32) + 100.5
        many = exact.repeat(400)[torch.randperm(ROOM * 400, generator=torch.Generator().manual_seed(0))]
        for found in agree(device, [many, -many], 1, ROOM * 100, levels=True, fan=weights(ROOM * 100)):
            assert int((found.levels.sum(0) > 0).sum()) == ROOM
        ints = torch.randint(-66, 67, many.shape, generator=torch.Generator().manual_seed(1)).float()
        more = torch.where(spikes(many.shape) > 0, ints, torch.randn(many.shape))
        agree(device, [many, torch.full((400,), 0.1), more, ints, spikes((400,))], 1, 400, levels=True)
    finally:
        torch.set_num_threads(before)


def test_scaled_spikes(device: str) -> None:
    """k/9 in float32: nine values, one of them 1; and spikes of one size, which have a road of their own."""
    k = torch.randint(0, 10, (4, 30, 100), generator=torch.Generator().manual_seed(0))
    (found,) = agree(device, [k.float() / 9], 30, 100, levels=True, fan=weights(100))
    assert int((found.levels.sum(0) > 0).sum()) == 9
    agree(device, [spikes((2, 9000)) * 0.25, spikes((2, 9000)) * -0.25, spikes((2, 9000)) * 3], 9, 1000, levels=True)


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ([0.0, 1.0, -0.0], []),
        ([2.0], [BEYOND_ONE]),
        ([1e-40], [BEYOND_ONE]),
        ([-1.0, 1.0], [NEGATIVE, BEYOND_ONE]),
        ([math.nan], [NON_FINITE, BEYOND_ONE]),
        ([-math.inf], [NON_FINITE, NEGATIVE, BEYOND_ONE]),
    ],
    ids=str,
)
def test_flags(backend: str, values: list[float], flags: list[int]) -> None:
    x = torch.zeros(3000, device=on(backend))
    x[-len(values) :] = torch.tensor(values)
    table = Table.new(x.device)
    tally(x, 1, 3000, table=table, backend=backend)
    assert table.flags.nonzero().flatten().tolist() == flags


def test_totals_beyond_32_bits(backend: str) -> None:
    device, most = on(backend), 2**31 - 1
    x, table = torch.ones(2, 3, 5000, device=device), Table.new(device)
    x[1] = 0.5
    fan = torch.full((5000,), most, dtype=torch.int32, device=device)
    found = tally(x, 3, 5000, table=table, fan=fan, pruned=fan, backend=backend)
    assert found.pruned is not None
    assert found.terms.tolist() == found.pruned.tolist() == [15000 * most] * 2
    assert by_value(table, found.levels) == {1.0: [15000 * most, 0], 0.5: [0, 15000 * most]}


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers_are_counted_exactly(backend: str, dtype: torch.dtype) -> None:
    most = 1 if dtype == torch.bool else min(torch.iinfo(dtype).max, 2**53)
    x = torch.tensor([0, 1, most, most], device=on(backend)).to(dtype)
    table = Table.new(x.device)
    found = tally(x, 1, 4, table=table, backend=backend)
    assert found.events.tolist() == [3]
    assert by_value(table, found.levels) == ({1.0: [3]} if most == 1 else {1.0: [1], float(most): [2]})


def test_nothing_to_count(backend: str) -> None:
    x, table = torch.zeros(4, 0, 6, device=on(backend)), Table.new(on(backend))
    found = tally(x, 2, 3, table=table, pruned=torch.ones(6, dtype=torch.int32, device=x.device), backend=backend)
    assert found.pruned is not None
    assert found.levels is not None
    assert (found.events.shape, found.pruned.shape, found.levels.shape) == ((0,), (0,), (0, SLOTS))


def test_gradients_and_odd_addresses_do_not_matter(device: str) -> None:
    base, fan = mixed((1 + 3 * 400,), torch.float32).requires_grad_(), weights(41)
    agree(device, [base[1:]], 10, 40, levels=True, fan=fan[1:])


INT = torch.ones(6, dtype=torch.int32)


@pytest.mark.parametrize(
    ("x", "maps", "error", "said"),
    [
        (torch.zeros(13), {}, ValueError, r"\[13\] is not a whole number of rows of outer \* inner = 2 \* 3"),
        (torch.zeros(6, 4).T, {}, ValueError, "pass it contiguous"),
        (torch.zeros(6, dtype=torch.complex64), {}, TypeError, "complex64"),
        (torch.zeros(6), {"fan": INT}, ValueError, r"fan has 6 entries, but \[inner\] needs 3"),
        (torch.zeros(6), {"fan": INT[:2].long(), "fan_on": "outer"}, TypeError, r"convert it with .int\(\)"),
        (torch.zeros(6), {"fan_on": "middle"}, ValueError, "'inner' or 'outer'"),
        (torch.zeros(6), {"pruned": INT[:2]}, ValueError, "needs 6 or 3"),
        (torch.zeros(6), {"table": Table.new("meta")}, ValueError, r"Table.new\(x.device\)"),
        (torch.zeros(6), {"affine": (INT, INT)}, TypeError, "scale is torch.int32"),
        (torch.zeros(6), {"affine": (torch.ones(3), torch.ones(3))}, ValueError, "needs 2"),
        (torch.zeros(6), {"affine": (torch.ones(2),) * 2, "table": Table.new("cpu")}, ValueError, "not both"),
        (torch.zeros(6), {"backend": "cuda"}, ValueError, "needs tensors on a cuda device"),
        (torch.zeros(6), {"backend": "gpu"}, ValueError, "unknown backend"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_calls_are_refused(x: Tensor, maps: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        tally(x, 2, 3, **maps)


SHIM = "".join(Path(__file__).with_name(f"cuda_{what}on_cpu.h").read_text() for what in ("", "blocks_"))
DRIVER = """
extern "C" void start(const void* arguments, unsigned blocks, unsigned threads) {
    every_block([](const void* a) { tally(*(const Arguments*)a); }, arguments, blocks, threads);
}
"""
HALF = ('asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));', "f = finite_half(v.bits);")


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        self.library = build.load(SHIM + source.replace(*HALF) + DRIVER)
        self.grid, self.struct = (ctypes.c_uint(blocks), ctypes.c_uint(threads)), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.library.start(self.struct.pack(*values), *self.grid)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sends CPU tensors to the CUDA kernel; call it with the number of multiprocessors that there seem to be."""
    monkeypatch.setattr(cuda, "Kernel", OnCpu)
    monkeypatch.setattr(cuda, "_plans", {})
    monkeypatch.setitem(front._RUN, "cpu", cuda.run)

    def choose(count: float) -> None:
        cuda._plans.clear()
        properties = SimpleNamespace(multi_processor_count=count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    return choose


@pytest.mark.parametrize(
    ("dtype", "size", "places"),
    [
        (torch.float32, (2, 5, 1000), ("inner", "full", None)),  # vectors of 4, a ragged last part
        (torch.float32, (3, 7, 13), ("outer", "inner", None)),  # one element per load, one warp
        (torch.float32, (2, 1, 9001), (None, None, None)),
        (torch.bfloat16, (2, 300, 24), ("outer", "full", None)),  # vectors of 8
        (torch.float64, (1, 1500, 6), ("inner", "inner", None)),
        (torch.float32, (2, 90, 64), ("inner", None, "outer")),
        (torch.float16, (2, 90, 16), ("outer", None, "inner")),
    ],
)
def test_the_cuda_kernel_on_the_cpu(
    emulated: Callable[[float], None], dtype: torch.dtype, size: tuple[int, int, int], places: Sequence[Any]
) -> None:
    others = mixed(size, dtype)
    others = others.nan_to_num(0.0, 2.0, 3.0) if dtype == torch.float16 else others  # the stand-in knows finite halves
    for processors in (1000, 0.001):  # many small parts, few large ones
        emulated(processors)
        maps = options(size[1], size[2], *places)
        agree("cpu", [spikes(size).to(dtype), others], size[1], size[2], levels=places[2] is None, **maps)
        assert cuda._plans


def test_a_full_table_of_the_cuda_kernel(emulated: Callable[[float], None]) -> None:
    emulated(1)
    x = torch.arange(1, 2 * ROOM + 3, dtype=torch.float32) / 2
    agree("cpu", [x * (x < 200), x, x.flip(0), torch.ones(3, 2 * ROOM + 2)], 1, len(x), levels=True)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("loaded", ["float32 4", "float32 1", "float16 8", "bfloat16 8", "float64 2"])
def test_the_cuda_source_compiles_without_spilling(tmp_path: Path, loaded: str, wide: bool) -> None:
    dtype, vector = loaded.split()[0], int(loaded.split()[1])
    maps = ("INNER", "FULL", "NONE", True) if wide or vector == 8 else ("OUTER", "INNER", "OUTER", False)
    code = tmp_path / "tally.cu"
    code.write_text(cuda.source(cuda.Choices(dtype, vector, min(4, 16 // vector), 256, *maps, wide)))
    command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v", "--diag-suppress=177"]
    done = subprocess.run([*command, "-o", "/dev/null", str(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    assert "0 bytes spill stores" in done.stderr


@pytest.mark.gpu
def test_a_cuda_graph_captures_it_and_nothing_waits() -> None:
    x, table, fan = spikes((8, 64, 100)).cuda(), Table.new("cuda"), weights(100).cuda()
    expected = tally(x, 64, 100, fan=fan).terms
    tally(x, 64, 100, table=table, fan=fan)
    graph = torch.cuda.CUDAGraph()
    with no_waiting():
        tally(x, 64, 100, table=table, fan=fan)
    with torch.cuda.graph(graph):
        found = tally(x, 64, 100, table=table, fan=fan)
    x.mul_(2)
    for _ in range(2):
        graph.replay()
        assert torch.equal(found.terms, expected)
        assert by_value(table, found.levels) == {2.0: expected.tolist()}
