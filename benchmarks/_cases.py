"""What is measured: shapes, the bytes that must move, and the targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

FORWARD, TRAIN = "forward", "forward+backward"
SECTIONS = ("lif", "bn_lif", "if", "plif", "alif")
STEPS = (1, 4, 16, 128, 1024)
CHECKPOINT_EVERY = 16
"""K of the target for saved memory: beyond K steps the state is kept every K steps (`CHUNK` in kernels/call.py)."""
STATES = {"alif": 2}
"""State variables per neuron, where there is more than one."""
L2_BYTES = 50e6
"""A tensor below this may stay in the cache of an H100 between calls, so that its limit means little."""

STREAMS = {("neuron", FORWARD): 2, ("neuron", TRAIN): 5, ("bn", FORWARD): 3, ("bn", TRAIN): 8}
"""Elements read or written per element of x. Neuron: read x, write s; read x, read grad_s, write grad_x. With BatchNorm
the statistics need a pass of their own, forward and backward: x; x, s; x, grad_s; x, grad_s, grad_x."""

_LANES = {
    "cuda": {1: 2**27, 4: 2**26, 16: 2**23, 128: 2**20, 1024: 2**14},
    "cpu": {1: 2**22, 4: 2**20, 16: 2**18, 128: 2**15, 1024: 2**12},
}
_IMAGES = {
    "cuda": [(4, 32, 96, 112, 112), (4, 32, 384, 14, 14)],
    "cpu": [(4, 8, 96, 28, 28), (4, 8, 384, 14, 14)],
}
_QUICK = {1: 2**14, 4: 2**12, 16: 2**10, 128: 2**7, 1024: 2**4}
_QUICK_IMAGES = [(4, 4, 32, 14, 14)]


@dataclass(frozen=True)
class Case:
    """One input: [T, N] for a neuron, [T, B, C, H, W] with BatchNorm in front."""

    section: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False

    @property
    def steps(self) -> int:
        return self.shape[0]

    @property
    def normed(self) -> bool:
        return self.section == "bn_lif"

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(self.dtype).removeprefix("torch.")]

    @property
    def shape_name(self) -> str:
        shown = [f"2^{n.bit_length() - 1}" if n >= 4096 and n & (n - 1) == 0 else str(n) for n in self.shape]
        return f"[{', '.join(shown)}]{' channels-last' if self.channels_last else ''}"

    def limit_ms(self, part: str, gigabytes_per_s: float) -> float:
        """Time of moving the bytes that must move at the measured copy bandwidth."""
        streams = STREAMS["bn" if self.normed else "neuron", part]
        return streams * self.bytes / (gigabytes_per_s * 1e9) * 1e3

    def input(self, device: torch.device) -> torch.Tensor:
        """Gaussian currents of standard deviation 2, a leaf that wants its gradient."""
        x = 2 * torch.randn(self.shape, device=device, dtype=self.dtype)
        if self.channels_last:
            x = x.movedim(2, -1).contiguous().movedim(-1, 2)
        return x.requires_grad_()


def cases(section: str, device: str, dtypes: list[torch.dtype], steps: list[int], quick: bool) -> Iterator[Case]:
    """The cases of a section in the order in which they are measured: those with targets first."""
    if section == "bn_lif":
        images = _QUICK_IMAGES if quick else _IMAGES[device]
        for shape in images:
            for dtype in dtypes:
                yield Case(section, shape, dtype)
                yield Case(section, shape, dtype, channels_last=True)
        return
    lanes = _QUICK if quick else _LANES[device]
    for T in sorted(steps, key=lambda t: (t == 1, t)):
        for dtype in dtypes:
            yield Case(section, (T, lanes[T]), dtype)


@dataclass(frozen=True)
class Target:
    """A bound on a figure. `at_least`: the figure must reach it; otherwise it must not pass it."""

    what: str
    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


HOST_US = Target("host us", 30.0)
SAVED = "saved bytes per element"
_LIF_LIMITS = {4: (1.15, 1.15), 16: (1.25, 1.25), 128: (1.45, 1.45), 1024: (2.6, 4.5)}
_BN_SHAPES = _IMAGES["cuda"]


def targets(case: Case, part: str, device: str) -> dict[str, Target]:
    """Targets by figure: `limit` (x limit), `eager` and `graph` (ms), `peers` (best of three peers over ours)."""
    found: dict[str, Target] = {}
    if part != TRAIN or case.channels_last:
        return found
    low = case.dtype is torch.bfloat16
    full = case.shape == (case.steps, _LANES[device].get(case.steps))
    if case.section == "lif" and full and device == "cuda" and case.steps in _LIF_LIMITS:
        found["limit"] = Target("x limit", _LIF_LIMITS[case.steps][low])
    if case.section == "lif" and full and device == "cpu" and case.steps in (4, 16, 128) and not low:
        found["peers"] = Target("best peer / ours", 5.0, at_least=True)
    if case.normed and device == "cuda" and case.shape == _BN_SHAPES[0]:
        found["limit"] = Target("x limit", 1.35)
    if case.normed and device == "cuda" and case.shape == _BN_SHAPES[1] and low:
        found["eager"] = Target("eager ms", 0.30)
        found["graph"] = Target("graph ms", 0.12)
    return found


def saved_target(case: Case) -> Target:
    """Bytes kept for backward per element of x: one float32 per state variable every K steps."""
    return Target(SAVED, 4.0 * STATES.get(case.section, 1) / CHECKPOINT_EVERY)
