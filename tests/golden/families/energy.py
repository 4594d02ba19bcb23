"""Golden energy counts: rebuild the network from its graph, count one run, compare every number.

A variant is a flavour of the network (see golden/energy/nets.py), or a flavour with another way to run it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from spikeloom_tests.golden.energy.compare import Findings, compare_counts
from spikeloom_tests.golden.energy.functional import FunctionalNet
from spikeloom_tests.golden.energy.graph import Case
from spikeloom_tests.golden.energy.layers import DelayLinear
from spikeloom_tests.golden.energy.nets import PlainNet, ProjectNet, StepNet
from spikeloom_tests.golden.energy.sums import compare_early_exit, compare_energies, compare_totals
from torch import Tensor, nn

from spikeloom.energy import count, register_delays
from spikeloom.energy.counts import Counts
from spikeloom.neurons import Stream

Outputs = dict[str, Tensor]
Ran = tuple[Outputs, Counts]
Way = Callable[[Case, torch.dtype], Ran]

register_delays(DelayLinear, lambda m: (m.weight, m.delay, m.max_delay))


def build(cls: type[nn.Module], case: Case, dtype: torch.dtype) -> nn.Module:
    """A network of a flavour, in evaluation."""
    return cls(case).to(dtype).eval()


def at_once(
    cls: type[nn.Module],
    mode: Callable[[], AbstractContextManager[object]] = torch.no_grad,
    device: str = "cpu",
) -> Way:
    """One call with all steps and samples."""

    def run(case: Case, dtype: torch.dtype) -> Ran:
        net = build(cls, case, dtype).to(device)
        with mode(), count(net, strict=True) as meter, torch.backends.cudnn.flags(allow_tf32=False):
            outputs = net(case.x.to(device, dtype))
        return {name: output.cpu() for name, output in outputs.items()}, meter.counts()

    return run


@torch.no_grad()
def sample_by_sample(case: Case, dtype: torch.dtype) -> Ran:
    """A call per sample: the kinds are those of the whole run."""
    net = build(ProjectNet, case, dtype)
    with count(net, strict=True) as meter:
        parts = [net(case.x[:, b : b + 1].to(dtype)) for b in range(case.samples)]
    return joined(parts, 1), meter.counts()


@torch.no_grad()
def step_by_step(case: Case, dtype: torch.dtype) -> Ran:
    """A loop over time outside of a network of [B, ...]."""
    net, x = build(StepNet, case, dtype), case.x.to(dtype)
    with count(net, strict=True) as meter, meter.batch(T=case.steps):
        parts = [net(x[t]) for t in range(case.steps)]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}, meter.counts()


@torch.no_grad()
def streamed(case: Case, dtype: torch.dtype) -> Ran:
    """Chunks of one step, [1, B, ...], the state carried by a Stream."""
    net, x = build(ProjectNet, case, dtype), case.x.to(dtype)
    stream = Stream(net)
    with count(net, strict=True) as meter, meter.batch(T=case.steps, B=case.samples):
        parts = [stream(x[t : t + 1]) for t in range(case.steps)]
    return joined(parts, 0), meter.counts()


@torch.no_grad()
def channels_last(case: Case, dtype: torch.dtype) -> Ran:
    """Frames and weights in channels-last memory."""
    net = build(ProjectNet, case, dtype).to(memory_format=torch.channels_last)
    x = case.x.to(dtype).flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (case.steps, case.samples))
    with count(net, strict=True) as meter:
        outputs = net(x)
    return outputs, meter.counts()


@torch.no_grad()
def batch_first_memory(case: Case, dtype: torch.dtype) -> Ran:
    """A batch-first tensor seen time-first: spikeloom's layers fold it in the order of its memory."""
    net = build(ProjectNet, case, dtype)
    x = case.x.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)
    with count(net, strict=True) as meter:
        outputs = net(x)
    return outputs, meter.counts()


@torch.no_grad()
def without_module(case: Case, dtype: torch.dtype) -> Ran:
    """The counter is not given the network: code that is anybody's."""
    net = build(FunctionalNet, case, dtype)
    with (
        count(strict=True, weights=[*net.parameters(), *net.buffers()]) as meter,
        meter.batch(T=case.steps, B=case.samples),
    ):
        outputs = net(case.x.to(dtype))
    return outputs, meter.counts()


def joined(parts: list[Outputs], axis: int) -> Outputs:
    """Outputs of several calls as one."""
    return {name: torch.cat([part[name] for part in parts], axis) for name in parts[0]}


WAYS: dict[str, Way] = {
    "project": at_once(ProjectNet),
    "plain": at_once(PlainNet),
    "functional": at_once(FunctionalNet),
    "inference_mode": at_once(PlainNet, torch.inference_mode),
    "functional_inference_mode": at_once(FunctionalNet, torch.inference_mode),
    "project_inference_mode": at_once(ProjectNet, torch.inference_mode),
    "grad": at_once(ProjectNet, nullcontext),
    "plain_grad": at_once(PlainNet, nullcontext),
    "samples": sample_by_sample,
    "steps": step_by_step,
    "stream": streamed,
    "batch_first": batch_first_memory,
    "channels_last": channels_last,
    "no_module": without_module,
    "project_cuda": at_once(ProjectNet, device="cuda"),
    "plain_cuda": at_once(PlainNet, device="cuda"),
    "functional_cuda": at_once(FunctionalNet, torch.inference_mode, device="cuda"),
}
BY_ORDER = ("functional", "functional_cuda", "functional_inference_mode", "no_module")
"""Ways whose layers have no names of their own: these are matched by order."""
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def variants(path: Path) -> list[str]:
    """Every way in double precision, the flavours in single precision too."""
    ways = [way for way in WAYS if way != "channels_last" or Case.load(path).is_frames]
    single = [f"{way}-float32" for way in ("project", "plain", "functional", "samples", "steps", "project_cuda")]
    return [*(f"{way}-float64" for way in ways), *single]


def check(path: Path, variant: str) -> None:
    """Outputs, counts, totals and energies."""
    way, _, dtype = variant.rpartition("-")
    case, found = Case.load(path), Findings()
    outputs, counts = WAYS[way](case, DTYPES[dtype])
    compare_outputs(found, case, outputs, 1e-12 if dtype == "float64" else 4e-7)
    compare_counts(found, case.golden, counts, named=way not in BY_ORDER)
    compare_totals(found, case.golden, counts)
    compare_energies(found, case.golden, counts)
    compare_early_exit(found, case.golden, counts, outputs[case.final].detach())
    found.check()


def compare_outputs(found: Findings, case: Case, outputs: Outputs, tolerance: float) -> None:
    """Spikes are equal, the network's output agrees up to rounding (`tolerance` is the files' own)."""
    for name, wanted in case.expected().items():
        got = outputs[name].detach()
        if not wanted.is_floating_point():
            found.expect(f"spikes of {name}", bool((got == wanted).all()), True)
        else:
            difference = float((got.double() - wanted).abs().max())
            found.expect(f"output {name} differs by {difference:.1e}", difference <= tolerance, True)
