"""`NormNeuron`: BatchNorm, an optional residual add, and a neuron as one module and (nearly) one kernel.

    u = BatchNorm(x) + residual,    spikes = neuron(u)

In training the statistics are those of the batch with time folded in, as `BatchNorm` on `[T B, C, ...]` takes them; in
evaluation the running ones. The normalised tensor is never written: forward and backward recompute it. Parameters and
buffers are named as in `torch.nn.BatchNorm2d`, so its state dict loads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.kernels import weave
from spikeloom.kernels.backends import choose
from spikeloom.kernels.norm import Running, norm_weave
from spikeloom.kernels.norm.programs import fused
from spikeloom.kernels.op import dispatched, is_plain
from spikeloom.kernels.program import Program
from spikeloom.kernels.weaving import SCALE, SHIFT
from spikeloom.neurons import Neuron
from spikeloom.synapses.hooks import hooked


class NormNeuron(nn.Module):
    """BatchNorm (-> add) -> neuron over `[T, B, C, ...]`.

    Args:
        num_features: C.
        neuron: any neuron module with one input; its parameters stay its own.
        eps, momentum: as in `torch.nn.BatchNorm2d` (momentum None: cumulative average).
        emit: also return u, the neuron's input, for a membrane shortcut: `(spikes, u)`.
        process_group: share the batch statistics with this group's processes, as `torch.nn.SyncBatchNorm` does.
    """

    streams = True
    """Takes `state` and `return_state` in `forward`, so that `Stream` can carry the neuron's state."""

    def __init__(
        self,
        num_features: int,
        neuron: Neuron,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        emit: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(neuron, Neuron):
            raise TypeError(f"neuron must be a spikeloom Neuron such as LIF(), got {type(neuron).__name__}")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.emit = emit
        self.process_group = process_group
        self.neuron = neuron
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self._record()

    def _record(self) -> None:
        """Record the fused programs here, so that a traced `forward` finds them recorded."""
        self._source = self.neuron.program
        self._fused = {residual: fused(self._source, residual, self.emit) for residual in (False, True)}

    def _program(self, residual: bool) -> Program:
        if self._source is not self.neuron.program:  # the neuron's structure was changed
            self._record()
        return self._fused[residual]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_source", "_fused")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._record()

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        offset: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        return_state: bool = False,
    ) -> Any:
        """Run all time steps.

        Args:
            x: input [T, B, C, ...], usually of a convolution or a linear layer.
            residual: added after the normalisation, in the shape of x.
            offset: [C], stands for x + offset in front of the normalisation without touching x: the bias of the layer
                in front. In training it cancels, its gradient is 0, and the running mean alone takes it in.
            state, return_state: as in `Neuron.forward`.

        Returns:
            Spikes in the shape and dtype of x; with `emit` a pair (spikes, u); with `return_state` also the states.

        Raises:
            ValueError: x or offset is of another shape, or offset on another device than x.
        """
        self._check(x, offset)
        inputs = [x] if residual is None else [x, residual]
        program = self._program(residual is not None)
        runtime = self.neuron.runtime()
        if self.training:
            outputs, final, _ = norm_weave(
                program,
                inputs,
                runtime,
                self.weight,
                self.bias,
                eps=self.eps,
                running=self._running(offset),
                group=self.process_group,
                state=state,
                backend=self.neuron.backend,
                final=return_state,
            )
        else:
            outputs, final = weave(
                program,
                inputs,
                {**self._affine(x, offset), **runtime},
                state=state,
                backend=self.neuron.backend,
                final=return_state,
            )
        result = outputs if self.emit else outputs[0]
        return (result, final) if return_state else result

    def _check(self, x: Tensor, offset: Tensor | None) -> None:
        if x.dim() < 3 or x.shape[2] != self.num_features:
            raise ValueError(f"NormNeuron takes [T, B, C, ...] with C = {self.num_features}, got shape {list(x.shape)}")
        if offset is not None and (offset.shape != (self.num_features,) or offset.device != x.device):
            raise ValueError(
                f"NormNeuron got an offset of shape {list(offset.shape)} on {offset.device}; expected "
                f"[{self.num_features}], one number per channel, on {x.device}, where x is."
            )

    def _affine(self, x: Tensor, offset: Tensor | None) -> dict[str, Tensor]:
        """Scale and shift of the running statistics, a value for each channel of x."""
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = self.weight.to(real) * torch.rsqrt(self.running_var.to(real) + self.eps)
        mean = self.running_mean.to(real)
        shift = self.bias.to(real) - (mean if offset is None else mean - offset.to(real)) * scale
        shape = (-1, *[1] * (x.dim() - 3))
        return {SCALE: scale.view(shape), SHIFT: shift.view(shape)}

    def current(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `layer` in front makes of x, and the bias that it left out, to be passed to `forward` as `offset`.

        On a GPU a bias and its gradient cost a pass over memory each, and here they change nothing but a mean. A layer
        of another class than those of `spikeloom.synapses`, or with hooks, is called as it is.
        """
        bias = layer.bias if _leaves_its_bias(layer) else None
        if not isinstance(bias, Tensor) or not x.is_cuda or not is_plain(x) or dispatched():
            return layer(x), None
        if choose(self.neuron.backend, x.device.type) == "reference":
            return layer(x), None
        return layer(x, bias=False), bias

    def _running(self, offset: Tensor | None) -> Running:
        """The buffers, and the weight that this batch gets in them."""
        rate = self.momentum
        if rate is None:  # cumulative average
            rate = 1.0 / float(self.num_batches_tracked + 1)
        return Running(self.running_mean, self.running_var, self.num_batches_tracked, rate, offset)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, emit={self.emit}"


def _leaves_its_bias(layer: nn.Module) -> bool:
    """Whether `layer(x, bias=False)` is known to be `layer(x)` without its bias, and nobody looks at the result."""
    return bool(type(layer).__dict__.get("absorbs_bias")) and not hooked(layer)
