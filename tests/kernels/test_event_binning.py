"""Events into bins: CUDA kernels on the CPU, on a GPU and through nvcc; compiled loops against torch's operators."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.kernels.emulated_warps import NVCC, SHIM, compiled
from spikeloom_tests.kernels.waits import no_waiting
from torch import Tensor

from spikeloom.datasets import (
    Events,
    PackedEvents,
    frames,
    frames_by_count,
    frames_by_time,
    frames_by_window,
    time_surface,
    time_surfaces,
    voxel_grid,
)
from spikeloom.kernels.cpu import build
from spikeloom.kernels.events import cuda

KERNELS = ("events_edges", "events_count", "events_voxels", "events_grid")
DRIVER = """
static void run_NAME(const void* a) { NAME(*static_cast<const Arguments*>(a)); }
extern "C" void start_NAME(const void* a, unsigned b, unsigned t) { gridDim.x = b, every_warp(run_NAME, a, b, t); }
"""
STAND_INS = """
#define __noinline__
static Place gridDim;
template <class N> static N atomicAdd(N* to, N n) { return *to += n, *to - n; }
static int __popc(unsigned v) { return __builtin_popcount(v); }
static unsigned __ballot_sync(unsigned, bool v) {
    const unsigned warp = threadIdx.x / 32 * 32;
    offers[threadIdx.x].a[0] = v;
    meet_warp();
    unsigned all = 0;
    for (unsigned lane = 0; lane < 32; ++lane) all |= offers[warp + lane].a[0] << lane;
    meet_warp();
    return all;
}
"""
launched: list[str] = []


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        text = SHIM + STAND_INS + source + "".join(DRIVER.replace("NAME", kernel) for kernel in KERNELS)
        self.start, self.name = build.load(text)[f"start_{name}"], name
        self.grid, self.struct = (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        launched.append(self.name)
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> Iterator[None]:
    """Binning takes the CUDA kernels, which run on the CPU."""
    monkeypatch.setattr(cuda, "Kernel", OnCpu)
    monkeypatch.setattr(frames, "choose", lambda *_: "cuda")
    cuda._kernel.cache_clear()
    launched.clear()
    yield
    cuda._kernel.cache_clear()


def random(*lengths: int, size: tuple[int, int] = (5, 7), most: int = 10_000) -> PackedEvents:
    """Recordings of a sensor (height, width)."""
    rng = np.random.default_rng(sum(lengths))
    made = []
    for n in lengths:
        t, y, x, p = (rng.integers(0, below, n) for below in (most + 1, *size, 2))
        made.append(Events.from_arrays(t, x, y, p, *size))
    return PackedEvents.from_events(made)


def at(times: list[int]) -> PackedEvents:
    """Events of both polarities at two pixels."""
    n = len(times)
    columns = (times, [k % 2 for k in range(n)], [0] * n, [k // 2 % 2 for k in range(n)])
    return PackedEvents.from_events([Events.from_arrays(*columns, 1, 2)])


def gaps(offset: int) -> PackedEvents:
    """Columns that are every other number of a tensor, or lie `offset` numbers behind an aligned address."""

    def moved(column: Tensor) -> Tensor:
        if offset:
            return torch.cat((column.new_zeros(offset), column))[offset:]
        return torch.stack((column, column), 1)[:, 0]

    packed = random(101, 0, 60)
    columns = (moved(getattr(packed, name)) for name in "txyp")
    return PackedEvents(*columns, packed.offsets, packed.height, packed.width)


def largest(height: int, width: int) -> PackedEvents:
    """Events at both ends of a line as long as coordinates can say."""
    n = 19
    y, x = ([(side - 1) * (k % 3 > 0) for k in range(n)] for side in (height, width))
    return PackedEvents.from_events([Events.from_arrays(range(n), x, y, [k % 2 for k in range(n)], height, width)])


def near_units() -> PackedEvents:
    """Times that divide a range, to which a voxel's weight is rounded down, nearly or exactly into units of weight."""
    times = [[0, odd, 2 * odd] for odd in (49, 98, 103, 107, 161, 187, 197)]
    for span in range(2**42 + 1, 2**42 + 41, 2):
        units = [pow(span, -1, 2**20) * rest % 2**20 for rest in (1, 3, 2**20 - 1, 2**20 - 3)]
        times.append(sorted([u * span // 2**20 + d for u in units for d in (0, 1)] + [span]))
    return PackedEvents.from_events([at(t)[0] for t in times])


GIVEN: dict[str, Callable[[], PackedEvents]] = {
    "one": partial(random, 300),
    "many": partial(random, 307, 0, 1, 200),
    "all_empty": partial(random, 0, 0),
    "no_recordings": lambda: random(3).select([]),
    "one_empty": partial(random, 0),
    "one_event": partial(random, 1),
    "one_pixel_sensor": partial(random, 90, 5, size=(1, 1)),
    "at_one_instant": partial(at, [77] * 5_000),  # more than 2^31 units of weight in a voxel
    "at_time_0": partial(at, [0] * 9),
    "at_edges": partial(at, [k + d for k in range(0, 12_001, 500) for d in (0, 0, 1, 499)]),
    "largest_x": partial(largest, 1, 32_767),
    "largest_y": partial(largest, 32_767, 1),
    "near_units": near_units,
    "gaps": partial(gaps, 0),
    "behind_1": partial(gaps, 1),
    "behind_4": partial(gaps, 4),
    "behind_8": partial(gaps, 8),
}
BINNINGS: dict[str, Callable[[PackedEvents, int], Tensor]] = {
    "time": frames_by_time,
    "time_to_end": partial(frames_by_time, end_us=6_000),
    "time_behind_start": partial(frames_by_time, start_us=2_000, end_us=9_000),
    "time_negative_start": partial(frames_by_time, start_us=-4_000),
    "time_late_start": partial(frames_by_time, start_us=50_000),
    "window": partial(frames_by_window, window_us=500),
    "short_window": partial(frames_by_window, window_us=1),
    "count": frames_by_count,
    "last": partial(frames_by_count, remainder="last"),
    "events_per_frame": partial(frames_by_count, events_per_frame=50),
    "one_per_frame": partial(frames_by_count, events_per_frame=1),
    "voxel": voxel_grid,
    "voxel_to_end": partial(voxel_grid, end_us=6_000),
    "voxel_behind_start": partial(voxel_grid, start_us=2_000, end_us=9_000),
    "voxel_negative_start": partial(voxel_grid, start_us=-4_000),
    "voxel_late_start": partial(voxel_grid, start_us=50_000),
}
BINNINGS_OF_FRACTIONS: list[Callable[[PackedEvents], Tensor]] = [
    lambda events: frames_by_time(events, 4, start_us=0.5),  # type: ignore[arg-type]
    lambda events: voxel_grid(events, 4, end_us=1e6),  # type: ignore[arg-type]
    lambda events: frames_by_window(events, 4, 10.0),  # type: ignore[arg-type]
    lambda events: time_surface(events[0], 4, 10.0, start_us=0.5),  # type: ignore[arg-type]
    lambda events: time_surface(events[0], 4, 10.0, end_us=1e6),  # type: ignore[arg-type]
]
every_binning = pytest.mark.parametrize("binning", BINNINGS.values(), ids=BINNINGS)
STEPS = (1, 2, 6, 400)


def reference(binning: Callable[[PackedEvents, int], Tensor], packed: PackedEvents, T: int) -> Tensor:
    """By torch's operators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "choose", lambda *_: "reference")
        return binning(packed, T)


def agree(binning: Callable[[PackedEvents, int], Tensor], packed: PackedEvents, T: int, device: str) -> None:
    expected, found = reference(binning, packed, T), binning(packed.to(device), T)
    assert found.device.type == device
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected)


@every_binning
def test_compiled_loops_are_the_reference(binning: Any) -> None:
    for make in GIVEN.values():
        for T in STEPS:
            agree(binning, make(), min(T, 6) if make().height * make().width > 1000 else T, "cpu")


@every_binning
def test_the_kernels_on_the_cpu(emulated: None, binning: Any) -> None:
    for name, make in GIVEN.items():
        for T in (2,) if "largest" in name else STEPS[: 4 if name in ("many", "at_edges") else 3]:
            launched.clear()
            agree(binning, make(), T, "cpu")
            assert len(launched) <= 3


@pytest.mark.gpu
@every_binning
@pytest.mark.parametrize("given", GIVEN)
def test_the_kernels_on_a_gpu(given: str, binning: Any) -> None:
    packed = GIVEN[given]()
    if given in ("gaps", "behind_1", "behind_4", "behind_8"):  # not packed anew by a copy to the GPU
        columns = [getattr(packed, name) for name in "txyp"]
        offset = columns[0].storage_offset()
        held = [torch.empty(offset + 2 * len(c), dtype=c.dtype, device="cuda") for c in columns]
        placed = [h[offset : offset + len(c)] if offset else h[::2] for h, c in zip(held, columns, strict=True)]
        there = PackedEvents.trusted(
            *(p.copy_(c) for p, c in zip(placed, columns, strict=True)), packed.offsets.cuda(), 5, 7
        )
    else:
        there = packed.to("cuda")
    for T in (2,) if "largest" in given else STEPS:
        found = binning(there, T)
        expected = binning(packed, T)
        assert found.dtype == expected.dtype
        assert torch.equal(found.cpu(), expected)
        assert torch.equal(found, reference(binning, there, T))
        assert torch.equal(found, binning(there, T))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(1, 1), (34, 34), (260, 346)], ids=str)
@every_binning
def test_many_events_on_a_gpu(size: tuple[int, int], binning: Any) -> None:
    packed = random(300_001, 0, 1, 100_000, size=size)
    there = packed.to("cuda")
    found = binning(there, 5)
    assert torch.equal(found.cpu(), binning(packed, 5))
    assert torch.equal(found, binning(there, 5))


@pytest.mark.gpu
@every_binning
def test_a_second_stream_and_no_wait(binning: Any) -> None:
    packed = random(200_000, 100_000, size=(34, 34))
    expected, there = binning(packed, 8), packed.to("cuda")
    binning(there, 8)  # compiles
    stream = torch.cuda.Stream()
    later = PackedEvents.trusted(
        *(torch.zeros_like(getattr(there, name)) for name in "txyp"), torch.zeros_like(there.offsets), 34, 34
    )
    torch.cuda.synchronize()
    with no_waiting(), torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # on another stream the kernels would find zeros
        for name in ("t", "x", "y", "p", "offsets"):
            getattr(later, name).copy_(getattr(there, name))
        found = binning(later, 8)
    stream.synchronize()
    assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
def test_a_graph_captures_binning() -> None:
    there = random(50_000, size=(34, 34)).to("cuda")
    expected = [frames_by_time(there, 8), voxel_grid(there, 8)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [frames_by_time(there, 8), voxel_grid(there, 8)]
    for tensor in found:
        tensor.fill_(7)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("where", ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_ranges_of_any_length_are_exact(where: str, request: pytest.FixtureRequest) -> None:
    """Longer than what the CPU takes: fractions tell."""
    if where == "emulated":
        request.getfixturevalue("emulated")
    times, T = [0, 1, 2**40, 2**61 - 1, 2**61, 2**61 + 1, 3 * 2**60 + 5, 2**62 - 1, 2**62 - 1], 5
    packed = at(times)
    packed = packed.to("cuda") if where == "cuda" else packed
    for start in (0, 7):
        counts, grid = frames_by_time(packed, T, start_us=start), voxel_grid(packed, T, start_us=start)
        expected, voxels = torch.zeros_like(counts), torch.zeros_like(grid, dtype=torch.float64)
        for t, x, p in zip(times, packed.x.tolist(), packed.p.tolist(), strict=True):
            if t < start:
                continue
            expected[min((t - start) * T // (times[-1] - start), T - 1), 0, p, 0, x] += 1
            left, part = divmod(Fraction((t - start) * (T - 1), times[-1] - start), 1)
            weight = int(part * 2**20) / 2**20
            voxels[left, 0, 0, 0, x] += (2 * p - 1) * (1 - weight)
            if weight:
                voxels[left + 1, 0, 0, 0, x] += (2 * p - 1) * weight
        assert torch.equal(counts, expected)
        assert torch.equal(grid.double(), voxels)


@pytest.mark.parametrize("where", ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_latest_time_is_in_the_last_bin(where: str, request: pytest.FixtureRequest) -> None:
    if where == "emulated":
        request.getfixturevalue("emulated")
    packed = at([0, 2**62 - 1, 2**62, 2**63 - 1])
    counts = frames_by_time(packed.to("cuda") if where == "cuda" else packed, 2)
    assert counts.sum((1, 2, 3, 4)).tolist() == [2, 2]


@pytest.mark.parametrize("where", ["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_windows_may_end_behind_the_latest_time(where: str, request: pytest.FixtureRequest) -> None:
    if where == "emulated":
        request.getfixturevalue("emulated")
    packed = at([0, 2**62 - 1, 2**62, 2**62 + 9])
    counts = frames_by_window(packed.to("cuda") if where == "cuda" else packed, 4, 2**62)
    assert counts.sum((1, 2, 3, 4)).tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("call", BINNINGS_OF_FRACTIONS, ids=range(len(BINNINGS_OF_FRACTIONS)))
def test_fractions_are_refused(call: Callable[[PackedEvents], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"(start|end|window)_us is [\d.]+; expected a whole number, such as"):
        call(random(9))


def test_more_edges_than_an_integer_counts_are_refused(emulated: None) -> None:
    with pytest.raises(ValueError, match="fewer than 2\\^31"):
        frames_by_count(random(0), 2**31 - 1)


def test_given_ranges_are_refused_without_a_look_at_events(emulated: None) -> None:
    for binning in (frames_by_time, voxel_grid):
        with pytest.raises(ValueError, match="set start_us"):
            binning(random(5), 4, end_us=2**60)
        with pytest.raises(ValueError, match="expected start_us < end_us"):
            binning(random(5), 4, start_us=9, end_us=9)
        with pytest.raises(ValueError, match="T is 0"):
            binning(random(5), 0)
    assert not launched


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_voxels_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    packed = random(4_000, 0, 1, 900, size=(6, 5))
    monkeypatch.setattr("spikeloom.kernels.events.cpu._threads", lambda events: threads)
    for T in (1, 2, 7):
        agree(voxel_grid, packed, T, "cpu")


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (300, 300)], ids=str)
@pytest.mark.parametrize("count", [0, 1, 700])
def test_compiled_surfaces_are_the_reference(
    monkeypatch: pytest.MonkeyPatch, count: int, size: tuple[int, int]
) -> None:
    events = random(count, size=size)[0]
    calls = [{}, {"start_us": 3_000}, {"end_us": 4_000}, {"start_us": -50, "end_us": 20_000}, {"start_us": 20_000}]
    for T in (1, 5):
        found = [time_surface(events, T, 1_234.5, **given) for given in calls]
        with monkeypatch.context() as patch:
            patch.setattr(time_surfaces, "choose", lambda *_: "reference")
            assert all(torch.equal(f, time_surface(events, T, 1_234.5, **g)) for f, g in zip(found, calls, strict=True))


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("wide", [True, False], ids=["wide", "narrow"])
def test_the_source_compiles_without_spilling(tmp_path: Path, wide: bool) -> None:
    said = compiled(cuda.source(wide), tmp_path)
    assert "warning" not in said
    assert said.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == said.count("Function prop")
