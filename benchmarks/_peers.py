"""How the other frameworks compute the same, called the way their documentation says and as fast as they can.

All start from rest at every call. Where a module keeps state, it is reset outside the timed part; loops over time get
their initial state ready-made. Equations: LIF with tau 2, threshold 1 and hard reset, except

* snnTorch `Leaky(beta=0.5)` has its own form: input not decayed, soft reset, arctangent surrogate;
* Norse `LIFBoxCell` has the same equation with its default SuperSpike surrogate; `lsnn_feed_forward_step` is ALIF with
  a synaptic current in front.

SpikingJelly 2.0 has no `backend` argument: operators choose by the device (Triton on a GPU, plain torch on a CPU).
These ways in are timed:

* `spikingjelly`: the module as documented. Its state has the dtype of x; with bfloat16 that is not what the fused
  operator takes, and a Python loop over time runs;
* `sj fp32 state`: bfloat16 x with a float32 state, through its functional interface: the fused operator;
* `sj autotuned` (GPU, LIF): the functional interface with `neuron_storage`: autotuned Triton kernels, state and what
  is kept for backward in the dtype of x;
* `sj compiled` (GPU, with BatchNorm): BatchNorm and the fused operator under `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from _cases import Case
from _ours import Implementation
from torch import Tensor, nn

Maker = Callable[[], Implementation]
PEERS = ("spikingjelly", "sj_autotuned", "snntorch", "norse", "compile")
LOOP_STEPS = {"cuda": 16, "cpu": 128}
"""Longest T at which snnTorch and Norse, which loop over time in Python, are timed."""
COMPILED_STEPS = 16
"""Longest T at which the loop is compiled: the compiler unrolls it."""


def peers(case: Case, device: torch.device, wanted: Iterable[str]) -> Iterator[tuple[str, Maker]]:
    """Name and maker of every peer of a case. A maker may raise: a package is missing, a device is not served."""
    if case.channels_last:
        return
    wanted = set(wanted)
    if case.section != "alif":
        yield from _spikingjelly(case, device, wanted)
    short = case.steps <= LOOP_STEPS[device.type]
    leaky = case.section in ("lif", "bn_lif")
    adaptive = case.section == "alif" and case.steps > 1  # Norse's fires one step late: at T = 1 nothing depends on x
    if "snntorch" in wanted and short and leaky:
        yield "snntorch", lambda: _snntorch(case, device)
    if "norse" in wanted and short and (leaky or adaptive):
        yield "norse", lambda: _norse(case, device)
    if "compile" in wanted and case.section in ("lif", "bn_lif", "if") and case.steps <= COMPILED_STEPS:
        yield "compiled loop", lambda: _compiled_loop(case, device)


def _normed(case: Case, device: torch.device, run: Callable[[Tensor], Tensor]) -> tuple[Any, tuple[Tensor, ...]]:
    """`run`, behind torch's BatchNorm over [T B, C, H, W] where the case has one; and the parameters of that."""
    if not case.normed:
        return run, ()
    norm = nn.BatchNorm2d(case.shape[2]).to(device)

    def with_norm(x: Tensor) -> Tensor:
        return run(norm(x.flatten(0, 1)).view(x.shape))

    return with_norm, tuple(norm.parameters())


def _rest(case: Case, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.zeros(case.shape[1:], dtype=dtype, device=device)


def _spikingjelly(case: Case, device: torch.device, wanted: set[str]) -> Iterator[tuple[str, Maker]]:
    if "spikingjelly" in wanted:
        yield "spikingjelly", lambda: _sj_module(case, device)
        if case.dtype is not torch.float32:
            yield "sj fp32 state", lambda: _sj_functional(case, device, torch.float32, "sj fp32 state")
        if device.type == "cuda" and case.normed:
            yield "sj compiled", lambda: _sj_compiled(case, device)
    if "sj_autotuned" in wanted and device.type == "cuda" and case.section == "lif":
        stored = case.dtype
        yield "sj autotuned", lambda: _sj_functional(case, device, stored, "sj autotuned", neuron_storage=stored)


def _sj_module(case: Case, device: torch.device) -> Implementation:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    options: dict[str, Any] = {
        "step_mode": "m",
        "detach_reset": True,
        "v_reset": 0.0,
        "surrogate_function": surrogate.Sigmoid(),
    }
    if case.section == "if":
        node: nn.Module = neuron.IFNode(**options)
    elif case.section == "plif":
        node = neuron.ParametricLIFNode(init_tau=2.0, **options)
    else:
        node = neuron.LIFNode(tau=2.0, **options)
    net = nn.Sequential(layer.BatchNorm2d(case.shape[2], step_mode="m"), node) if case.normed else node
    net.to(device)
    own = tuple(net.parameters())
    return Implementation("spikingjelly", net, lambda: functional.reset_net(net), own, device.type == "cuda")


def _sj_step(case: Case, device: torch.device, state: torch.dtype, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """SpikingJelly's functional multi-step neuron with an initial state of a dtype; and its parameters."""
    from spikingjelly.activation_based import functional, surrogate

    rest, spike = _rest(case, device, state), surrogate.Sigmoid()
    if case.section == "if":
        return lambda x: functional.if_multi_step(x, rest, 1.0, 0.0, spike, True, **options)[0], ()
    if case.section == "plif":
        w = nn.Parameter(torch.zeros((), device=device))
        return lambda x: functional.plif_multi_step(x, rest, w, True, 1.0, 0.0, spike, True, **options)[0], (w,)
    return lambda x: functional.lif_multi_step(x, rest, 2.0, True, 1.0, 0.0, spike, True, **options)[0], ()


def _sj_functional(case: Case, device: torch.device, state: torch.dtype, name: str, **options: Any) -> Implementation:
    step, own = _sj_step(case, device, state, **options)
    run, parameters = _normed(case, device, step)
    return Implementation(name, run, parameters=own + parameters, compiles=device.type == "cuda")


def _sj_compiled(case: Case, device: torch.device) -> Implementation:
    step, own = _sj_step(case, device, torch.float32)
    run, parameters = _normed(case, device, step)
    torch.compiler.reset()
    return Implementation("sj compiled", torch.compile(run, dynamic=False), parameters=own + parameters, compiles=True)


def _snntorch(case: Case, device: torch.device) -> Implementation:
    import snntorch

    cell = snntorch.Leaky(beta=0.5).to(device)
    rest = _rest(case, device, case.dtype)

    def loop(x: Tensor) -> Tensor:
        membrane, spikes = rest, []
        for current in x:
            spike, membrane = cell(current, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    def reset() -> None:
        cell.mem = rest.new_zeros(0)  # snnTorch keeps every cell alive in a list; what the cell holds need not stay

    run, parameters = _normed(case, device, loop)
    return Implementation("snntorch", run, reset, parameters)


def _norse(case: Case, device: torch.device) -> Implementation:
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters
    from norse.torch.functional.lsnn import LSNNFeedForwardState, LSNNParameters, lsnn_feed_forward_step
    from norse.torch.module.lif_box import LIFBoxCell

    rest = _rest(case, device, case.dtype)
    if case.section == "alif":
        p = LSNNParameters(tau_mem_inv=torch.tensor(500.0), tau_adapt_inv=torch.tensor(10.0), beta=torch.tensor(0.2))
        start: Any = LSNNFeedForwardState(v=rest, i=rest, b=rest + 1.0)

        def cell(current: Tensor, state: Any) -> Any:
            return lsnn_feed_forward_step(current, state, p, 1e-3)
    else:
        cell = LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(500.0)), dt=1e-3)
        start = LIFBoxFeedForwardState(v=rest)

    def loop(x: Tensor) -> Tensor:
        state, spikes = start, []
        for current in x:
            spike, state = cell(current, state)
            spikes.append(spike)
        return torch.stack(spikes)

    run, parameters = _normed(case, device, loop)
    return Implementation("norse", run, parameters=parameters)


class _Spike(torch.autograd.Function):
    """Heaviside step with the derivative of sigmoid(4 u)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        s = torch.sigmoid(4.0 * u)
        return grad * 4.0 * s * (1.0 - s)


def _loop(x: Tensor, leaky: bool) -> Tensor:
    """LIF or IF as one would write it in PyTorch, state in float32."""
    v = torch.zeros_like(x[0], dtype=torch.float32)
    spikes = []
    for current in x.unbind(0):
        u = current.float()
        h = v + (u - v) / 2.0 if leaky else v + u
        s = _Spike.apply(h - 1.0)
        v = h * (1.0 - s.detach())
        spikes.append(s.to(x.dtype))
    return torch.stack(spikes)


def _compiled_loop(case: Case, device: torch.device) -> Implementation:
    leaky = case.section != "if"
    if case.normed:
        norm = nn.BatchNorm2d(case.shape[2]).to(device)
        own: tuple[Tensor, ...] = tuple(norm.parameters())

        def step(x: Tensor) -> Tensor:
            return _loop(norm(x.flatten(0, 1)).view(x.shape), leaky)
    else:
        own = ()

        def step(x: Tensor) -> Tensor:
            return _loop(x, leaky)

    torch.compiler.reset()
    run = torch.compile(step, dynamic=False, fullgraph=True)
    return Implementation("compiled loop", run, parameters=own, compiles=True)
