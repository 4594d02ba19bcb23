"""The converted network: an ordinary module over all time steps, with a list of operations instead of a forward.

    logits = net(images)      # [B, C, H, W] or [B, D], shown at each of net.T steps -> [T, B, K]
    logits = net(frames)      # [T, B, ...]: an input of its own at each step
    decision = logits.mean(0).argmax(1)

The answer is the mean (or the sum) of the last layer's outputs; no neuron stands there. A call starts from rest; a
`spikeloom.Stream` carries the membranes from call to call.

A comparison with NaN is false, so neurons would answer NaN with silence. Samples with NaN or infinity in their input
get logits of NaN instead, without waiting for the device: 0 * x is added up and added to the logits. In a Stream that
holds for the chunk in which it stands; under what watches operators (the energy counter) it is left out.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.choices import Settings
from spikeloom.conversion.graph import CALL, INPUT, OUTPUT, Graph, Node, fetch
from spikeloom.conversion.lockstep import repeated
from spikeloom.conversion.operations import CALLS
from spikeloom.conversion.report import Report
from spikeloom.kernels.op import dispatched


class ConvertedNet(nn.Module):
    """What `convert` returns.

    Attributes:
        layers: the modules, under the names of their calls in the ANN.
        config: the choices that it was converted with.
        T: time steps of an image; may be changed at any time, but a change warns where thresholds, currents or
            corrections were made for one T (mse, light, advanced, weights): convert again.
        report: thresholds, rates and errors of every layer.
        input_ndim: axes of a batch of images, 4 for `[B, C, H, W]`.
    """

    def __init__(self, graph: Graph, config: Settings, input_ndim: int, report: Report | None = None) -> None:
        super().__init__()
        used = {node.name for node in graph.nodes}
        self.layers = nn.ModuleDict({name: module for name, module in graph.modules.items() if name in used})
        self.nodes = graph.nodes
        self.config, self.input_ndim = config, input_ndim
        self._steps = config.T
        self.report = Report() if report is None else report
        self._schedule = list(graph.schedule())
        self._stepwise, self._constants = graph.stepwise(), graph.constants()

    @property
    def T(self) -> int:  # noqa: N802 - the name of the field
        """Time steps of an image."""
        return self._steps

    @T.setter
    def T(self, steps: int) -> None:  # noqa: N802
        if self.config.fixed_steps and steps != self.config.T:
            warnings.warn(
                f"net.T is set to {steps}, but the thresholds and corrections of method {self.config.method!r} were "
                f"made for T = {self.config.T}. Convert again with T={steps}, or use 'ltb', 'channel_max' or 'qcfs', "
                "which hold for every T.",
                UserWarning,
                stacklevel=3,
            )
        self._steps = steps

    @property
    def latency(self) -> int:
        """Steps until the answer is there: T, and rho more with an offset (COS, SRP)."""
        return self.T + (self.config.latency - self.config.T)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, ...]` or frames `[T, B, ...]` -> logits of every step `[T, B, K]`.

        Raises:
            ValueError: neither; no time steps.
        """
        if x.ndim not in (self.input_ndim, self.input_ndim + 1) or not x.is_floating_point():
            raise ValueError(
                f"ConvertedNet got {x.dtype} {list(x.shape)}; expected floating-point images of {self.input_ndim} axes "
                f"[B, ...], or frames of {self.input_ndim + 1} [T, B, ...]."
            )
        steps = len(x) if x.ndim > self.input_ndim else self.T
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(
                f"ConvertedNet got {steps!r} time steps (net.T for images, the first axis of frames; x is "
                f"{list(x.shape)}); expected a whole number >= 1."
            )
        watched = dispatched() and not torch.compiler.is_compiling()
        if x.ndim > self.input_ndim:
            logits = self._run(x.flatten(0, 1), len(x), x.shape[1], False)
        else:
            steps = max(self.T, self.config.rho) if self.config.offset != "none" else self.T
            if dispatched():  # those who watch operators see the work of every step
                logits = self._run(x.expand(steps, *x.shape).flatten(0, 1), steps, len(x), False)[: self.T]
            else:
                logits = self._run(x, steps, len(x), True)[: self.T]
        if watched:
            return logits
        mark = self._mark(x).to(logits.dtype)
        return logits + mark.reshape(*mark.shape, *[1] * (logits.ndim - 2))

    def _mark(self, x: Tensor) -> Tensor:
        """0, or NaN for samples with NaN or infinity, from that step on, `[T, B]` or `[1, B]`."""
        zeros = x.detach() * 0
        if x.ndim == self.input_ndim:
            return zeros.sum([*range(1, x.ndim)]).unsqueeze(0)
        found = zeros.sum([*range(2, x.ndim)])
        return found.cumsum(0) if self.config.offset == "none" else found.sum(0, keepdim=True)

    def _run(self, x: Tensor, T: int, B: int, still: bool) -> Tensor:
        """Run all operations; `still`: what stands in front of the neurons runs once, for all steps."""
        values: dict[str, Any] = {}
        once = {n.name for n in self.nodes} - self._stepwise - self._constants if still else set()
        for node, dead in self._schedule:
            if node.kind == INPUT:
                values[node.name] = x if node.name in once or not still else repeated(x, T)
            elif node.kind == OUTPUT:
                result: Tensor = values[node.reads()[0]]
                return result.unflatten(0, (T, B))
            else:
                values[node.name] = self._operate(node, values, T, once)
            for name in dead:
                del values[name]
        raise ValueError("the network has no output")

    def _operate(self, node: Node, values: dict[str, Any], T: int, once: set[str]) -> Any:
        module = self.layers[node.name] if node.kind != CALL else None
        if module is not None and getattr(module, "streams", False):
            name = node.reads()[0]
            current = values[name]
            steps = current.expand(T, *current.shape) if name in once else current.unflatten(0, (T, -1))
            return module(steps).flatten(0, 1)
        late = node.name not in once
        seen = {n: repeated(values[n], T) if late and n in once else values[n] for n in node.reads()}
        args, kwargs = fetch(node, seen)
        return CALLS[node.target](*args, **kwargs) if module is None else module(*args, **kwargs)
