"""Feed-forward networks whose synapses have learned delays (DCLS-Delays).

    x [T, B, N_in] -> L blocks of (delayed synapses, batch normalisation, neuron, dropout, optional synapse filter)
                   -> delayed synapses, leaky integrator -> outputs [T', B, K], one per step; see delay_readout.py

T' = T + (L + 1) R: every delayed layer runs on for R = (max_delay - 1) // 2 steps of zeros (`tail`, see
synapses/delay_conv.py). The normalisation's statistics are those of all steps and samples; the dropout mask is one per
sequence. `tau` is in steps of 10 ms in the published networks.

Paper: Hammouamri, Khalfaoui-Hassani, Masquelier 2024, "Learning Delays in Spiking Neural Networks using Dilated
Convolutions with Learnable Spacings", ICLR, arXiv:2306.17670. Code: Thvnvtos/SNN-delays at d169b4e.

Kept as published, and how to change it: the tail (`tail="none"`); two softmaxes in the read-out `sum` (`nll`); steps of
padding count in the loss (`lengths` of `delay_loss`); positions are drawn from -(K // 2) - 1 ... K // 2, so that a
share 1 / K starts at the longest delay.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from spikeloom.models.classifier import check_floating
from spikeloom.models.delay_neurons import PLI, Heaviside, SynapseFilter
from spikeloom.models.delay_readout import Readout
from spikeloom.models.registry import UNREAD, Published, register_variant
from spikeloom.neurons import LI, LIF, PLIF, Neuron
from spikeloom.synapses import DelayConv1d, Dropout, Linear, NormNeuron
from spikeloom.synapses.dcls_kernel import WIDTHS, Version
from spikeloom.synapses.delay_conv import Tail
from spikeloom.synapses.time_axis import check_axes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class DelaySNNConfig:
    """A network of `depth` hidden layers of `hidden` neurons.

    delays: `learned`; `fixed`: random whole numbers, drawn once; `none`: plain linear maps, and no tail.
    kernel_count: elements (weights with a delay) per synapse. max_delay: K, the taps of a kernel, for delays of 0 to
    K - 1 steps. version, sigma: of learned delays' kernels and their first width, None: K // 2 (fixed ones are max, 0).
    neuron: `lif`, `plif` (learned tau) or `heaviside` (no membrane, and no output neuron). tau: steps, of the output
    too. alpha: of the atan surrogate. filter_tau: steps of a synapse filter behind the spikes, None: none.
    readout: what the outputs are meant for: for `spike_count` they are spikes at `output_threshold`, else membranes.
    sparsity: the share of synapses that are absent, drawn once. tail: see DelayConv1d.
    """

    in_features: int = 140
    hidden: int = 256
    depth: int = 2
    num_classes: int = 20
    delays: Literal["learned", "fixed", "none"] = "learned"
    kernel_count: int = 1
    max_delay: int = 25
    version: Version = "gauss"
    sigma: float | None = None
    neuron: Literal["lif", "plif", "heaviside"] = "lif"
    tau: float = 1.0050000001
    v_threshold: float = 1.0
    alpha: float = 5.0
    dropout: float = 0.4
    batch_norm: bool = True
    bias: bool = False
    filter_tau: float | None = None
    learn_filter: bool = False
    readout: Readout = "sum"
    output_threshold: float = 2.0
    sparsity: float = 0.0
    tail: Tail = "official"

    def __post_init__(self) -> None:
        counts = ("in_features", "hidden", "depth", "kernel_count", "max_delay")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"DelaySNNConfig.{name} is {getattr(self, name)}; expected >= 1.")
        if self.num_classes < 0:
            raise ValueError(f"DelaySNNConfig.num_classes is {self.num_classes}; expected >= 0 (0: no read-out).")
        if self.max_delay % 2 == 0 and self.delays != "none":
            raise ValueError(
                f"DelaySNNConfig.max_delay is {self.max_delay}; expected an odd number of taps, as an element at the "
                f"end of an even kernel is lost. {self.max_delay + 1} holds delays of 0 to {self.max_delay} steps."
            )
        if not (0 <= self.dropout < 1 and 0 <= self.sparsity < 1):
            raise ValueError(
                f"DelaySNNConfig: dropout is {self.dropout}, sparsity {self.sparsity}; expected 0 to below 1."
            )
        if self.neuron == "heaviside" and self.readout == "spike_count":
            raise ValueError(
                "DelaySNNConfig: neuron='heaviside' has no output neuron, so readout='spike_count' has none."
            )

    @property
    def kernel_version(self) -> str:
        """The version that the kernels have."""
        return "max" if self.delays == "fixed" else self.version

    @property
    def first_sigma(self) -> float:
        """The width that the kernels start with."""
        if self.delays == "fixed":
            return 0.0
        return float(self.max_delay // 2) if self.sigma is None else self.sigma

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Axes of an input behind T and B."""
        return (self.in_features,)


class DelayBlock(nn.Module):
    """A hidden layer: `[T, B, N]` -> spikes (or filtered ones) `[T + tail, B, N']`."""

    def __init__(self, config: DelaySNNConfig, inputs: int) -> None:
        super().__init__()
        self.synapse = _synapse(config, inputs, config.hidden)
        spiking = _neuron(config, config.v_threshold)
        self.fire: nn.Module = NormNeuron(config.hidden, spiking) if config.batch_norm else spiking
        self.dropout = Dropout(config.dropout)
        self.filter: nn.Module = nn.Identity()
        if config.filter_tau is not None:
            self.filter = SynapseFilter(config.filter_tau, config.learn_filter)

    def forward(self, x: Tensor, tail: bool | None = None) -> Tensor:
        """Run all time steps."""
        y: Tensor = self.filter(self.dropout(self.fire(run_synapse(self.synapse, x, tail))))
        return y


class DelayHead(nn.Module):
    """The output layer: `[T, B, N]` -> membranes, currents or spikes `[T + tail, B, K]`."""

    def __init__(self, config: DelaySNNConfig, classes: int) -> None:
        super().__init__()
        self.synapse = _synapse(config, config.hidden, classes)
        self.neuron: nn.Module
        if config.neuron == "heaviside":
            self.neuron = nn.Identity()
        elif config.readout == "spike_count":
            self.neuron = _neuron(config, config.output_threshold)
        else:
            self.neuron = PLI(config.tau) if config.neuron == "plif" else LI(config.tau, decay_input=False)

    def forward(self, x: Tensor, tail: bool | None = None) -> Tensor:
        """Run all time steps."""
        y: Tensor = self.neuron(run_synapse(self.synapse, x, tail))
        return y


class DelaySNN(nn.Module):
    """Hidden layers and an output layer: `[T, B, N_in]` -> outputs of every step `[T', B, K]`.

    A `Stream` runs it chunk by chunk without tails; `stream(last, tail=True)` ends the sequence as one call does.
    """

    def __init__(self, config: DelaySNNConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.hidden
        widths = [config.in_features, *[config.hidden] * (config.depth - 1)]
        self.blocks = nn.ModuleList(DelayBlock(config, width) for width in widths)
        self.head: nn.Module = DelayHead(config, config.num_classes) if config.num_classes else nn.Identity()
        self.reset_parameters()

    @property
    def num_classes(self) -> int:
        """The number of classes; 0: no output layer."""
        return self.config.num_classes

    def synapses(self) -> list[DelayConv1d | Linear]:
        """The layers with weights, from the input on."""
        return [module for module in self.modules() if isinstance(module, (DelayConv1d, Linear))]

    def delayed(self) -> list[DelayConv1d]:
        """The layers with delays, from the input on."""
        return [module for module in self.modules() if isinstance(module, DelayConv1d)]

    def reset_parameters(self) -> None:
        """Draw weights and delays anew, from torch's global generator and in the published order."""
        _draw(self.config, self.synapses())

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh output layer in the place of the old one, of the model's type and device; 0 takes it away.

        Raises:
            ValueError: `num_classes` is no whole number >= 0.
        """
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 0:
            raise ValueError(
                f"DelaySNN: num_classes is {num_classes!r}; expected a whole number >= 0 (0: no read-out)."
            )
        like = next(self.parameters())
        head = DelayHead(self.config, num_classes) if num_classes else nn.Identity()
        _draw(self.config, [m for m in head.modules() if isinstance(m, (DelayConv1d, Linear))])
        self.head = head.to(like.device, like.dtype).train(self.training)
        self.config = replace(self.config, num_classes=num_classes)

    def forward_features(self, x: Tensor, tail: bool | None = None) -> Tensor:
        """Input `[T, B, N_in]` -> what the output layer reads, `[T + L R, B, hidden]`."""
        check_axes(x, "DelaySNN", "T B N")
        check_floating(x, "DelaySNN")
        if x.shape[2] != self.config.in_features:
            raise ValueError(
                f"DelaySNN got {list(x.shape)}; expected [T, B, {self.config.in_features}], time first and channels "
                "last. Build it with in_features= of your channels."
            )
        for block in self.blocks:
            x = block(x, tail)
        return x

    def forward_head(self, features: Tensor, tail: bool | None = None) -> Tensor:
        """Features -> outputs of every step `[T', B, K]`."""
        y: Tensor = self.head(features, tail) if isinstance(self.head, DelayHead) else features
        return y

    def forward(self, x: Tensor, tail: bool | None = None) -> Tensor:
        """Input `[T, B, N_in]` -> outputs of every step `[T', B, K]`; `tail` as in `DelayConv1d.forward`."""
        return self.forward_head(self.forward_features(x, tail), tail)

    @torch.no_grad()
    def settle_(self) -> None:
        """After every step of the optimiser: positions into their range, absent synapses at 0."""
        for layer in self.synapses():
            if isinstance(layer, DelayConv1d):
                layer.clamp_positions_()
            if isinstance(layer.mask, Tensor):
                layer.weight.mul_(layer.mask)

    def round_(self) -> None:
        """For inference: every delay a whole number of steps (see `Elements.round_positions_`)."""
        for layer in self.delayed():
            layer.round_positions_()
        if self.config.kernel_version in WIDTHS:
            self.config = replace(self.config, version="max", sigma=0.0)

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """In evaluation mode with whole-number delays inside of a `with`, as the published code measures accuracy."""
        kept = [(x, x.version, {k: p.detach().clone() for k, p in x.named_parameters()}) for x in self.delayed()]
        config, training = self.config, {module: module.training for module in self.modules()}
        try:
            self.round_()
            self.eval()
            yield
        finally:
            with torch.no_grad():
                for layer, version, values in kept:
                    layer.version = version
                    for key, value in values.items():
                        layer.get_parameter(key).copy_(value)
            self.config = config
            for module, was in training.items():
                module.training = was

    @contextmanager
    def whole_sequence(self) -> Iterator[int]:
        """All layers for one number of steps inside of a `with`; gives how many zeros belong behind the input for that.

        Outputs are then those with tails: what a layer would not be given without these zeros is 0. Only what a layer
        sends behind its own end, which nobody reads, is there in addition.
        """
        layers = self.delayed()
        tails, steps = [layer.tail for layer in layers], [layer.tail_steps for layer in layers]
        ends = [_ending(sum(steps[i:])) for i in range(len(layers))]
        handles = [layer.register_forward_pre_hook(end) for layer, end in zip(layers, ends, strict=True)]
        try:
            for layer in layers:
                layer.tail = "none"
            yield sum(steps)
        finally:
            for layer, tail, handle in zip(layers, tails, handles, strict=True):
                layer.tail = tail
                handle.remove()


def _ending(steps: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook that makes the last so many steps of a layer's input 0."""

    def end(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = given
        if len(x) < steps:
            raise ValueError(f"whole_sequence: a layer got {len(x)} steps; expected {steps} zeros behind the input.")
        kept = x[: len(x) - steps]
        return (torch.cat([kept, x.new_zeros(steps, *x.shape[1:])]), *rest)

    return end


def run_synapse(synapse: nn.Module, x: Tensor, tail: bool | None) -> Tensor:
    """Delayed synapses with a tail or without, linear ones as they are."""
    y: Tensor = synapse(x, tail=tail) if isinstance(synapse, DelayConv1d) else synapse(x)
    return y


def _synapse(config: DelaySNNConfig, inputs: int, outputs: int) -> DelayConv1d | Linear:
    layer: DelayConv1d | Linear
    if config.delays == "none":
        layer = Linear(inputs, outputs, bias=config.bias)
    else:
        layer = DelayConv1d(
            inputs,
            outputs,
            config.kernel_count,
            config.max_delay,
            tail=config.tail,
            bias=config.bias,
            version=config.kernel_version,
            learn_sigma=False,
        )
        layer.P.requires_grad_(config.delays == "learned")
    layer.register_buffer("mask", torch.ones_like(layer.weight, dtype=torch.bool) if config.sparsity else None)
    return layer


def _neuron(config: DelaySNNConfig, threshold: float) -> Neuron:
    if config.neuron == "heaviside":
        return Heaviside(threshold, alpha=config.alpha)
    options: dict[str, Any] = {"decay_input": False, "surrogate": "atan", "alpha": config.alpha}
    kind = PLIF if config.neuron == "plif" else LIF
    return kind(config.tau, threshold, **options)


@torch.no_grad()
def _draw(config: DelaySNNConfig, layers: list[DelayConv1d | Linear]) -> None:
    """Starting values: all weights, each followed by its mask; then all positions; then biases."""
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        if isinstance(layer.mask, Tensor):
            layer.mask.copy_(torch.rand_like(layer.weight) > config.sparsity)
            layer.weight.mul_(layer.mask)
    for layer in layers:
        if isinstance(layer, DelayConv1d):
            nn.init.uniform_(layer.P, -config.max_delay // 2, config.max_delay // 2)  # the first is the floor
            layer.clamp_positions_()
            if config.delays == "fixed":
                layer.P.round_()
            if layer.SIG is not None:
                layer.set_sigma_(config.first_sigma)
    for layer in layers:
        if layer.bias is not None:
            bound = (layer.weight[0].numel()) ** -0.5
            nn.init.uniform_(layer.bias, -bound, bound)


_PAPER = "Hammouamri et al. 2024, DCLS-Delays, arXiv:2306.17670"
_TEST_SELECTED = "the published code picks the epoch on the test set"

register_variant(
    "delays_shd_2l_1kc", DelaySNN, DelaySNNConfig(), "Two hidden layers of 256 with one delay per synapse, for SHD.",
    paper=_PAPER, published=(Published("SHD", 95.07, _TEST_SELECTED),),
)  # fmt: skip
for _depth, _count, _ssc, _gsc in (
    (2, 1, 79.77, 94.91),
    (2, 2, 80.16, 95.00),
    (3, 1, 80.29, 95.29),
    (3, 2, 80.69, 95.35),
):
    register_variant(
        f"delays_ssc_{_depth}l_{_count}kc",
        DelaySNN,
        DelaySNNConfig(hidden=512, depth=_depth, num_classes=35, kernel_count=_count, max_delay=31, tau=1.5000000001,
                       dropout=0.25),
        f"{_depth} hidden layers of 512 with {_count} delay{'s' * (_count > 1)} per synapse, for SSC and GSC.",
        paper=_PAPER,
        published=(Published("SSC", _ssc, UNREAD), Published("GSC", _gsc, UNREAD)),
    )  # fmt: skip
