"""Layers of neurons: spikes, updates, and the updates that an input current touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeloom.energy.marks import Mark
from spikeloom.energy.rows import Rows
from spikeloom.energy.rules.elementwise import count_norm, lead_rows
from spikeloom.energy.rules.measure import (
    add_call,
    events_of,
    lay,
    level_tally,
    ordered,
    pair_events,
    place_name,
)
from spikeloom.energy.scopes import ROLES, Role
from spikeloom.kernels.program import Program
from spikeloom.kernels.tally import tally
from spikeloom.kernels.weaving import SCALE
from spikeloom.neurons import Neuron
from spikeloom.synapses import NormNeuron

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


@dataclass(frozen=True)
class NeuronFacts:
    """What one call of a neuron module was.

    Attributes:
        model: the neuron model's name ("lif", "if", "alif", ...).
        current: what was integrated, [T, B, ...] or [B, ...].
        spikes: its output, in the same shape.
        states: state variables per neuron.
        soft_reset: a spike subtracts the threshold; False: it sets the membrane.
        spiking: False for a read-out whose output is its membrane.
    """

    model: str
    current: Tensor
    spikes: Tensor
    states: int = 1
    soft_reset: bool = False
    spiking: bool = True


Describe = Callable[[nn.Module, tuple[Any, ...], Any], NeuronFacts]


def register_neuron(kind: type[nn.Module], describe: Describe) -> None:
    """Have a class of neuron modules counted as neurons.

    Linear operations inside of it (recurrent weights) are still counted, its own arithmetic is not.

    Args:
        kind: the class; subclasses are included.
        describe: `describe(module, args, output) -> NeuronFacts`, called after each forward.
    """

    def finish(run: Run, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        facts = describe(module, args, output)
        count_neurons(run, run.scopes.name_of(module), facts)
        run.mark_outputs(output)

    ROLES[kind] = Role(quiet=True, finish=finish)


def count_neurons(run: Run, name: str, facts: NeuronFacts, operations: dict[str, int] | None = None) -> None:
    """Count one call of a layer of neurons."""
    with torch.no_grad():
        rows = lead_rows(run, facts.spikes)
        _count(run, name, facts, events_of(run, facts.current, rows), rows, operations)


def _count(
    run: Run, name: str, facts: NeuronFacts, touched: Tensor, rows: Rows, operations: dict[str, int] | None
) -> None:
    site = run.site(name, "neuron")
    site.facts |= {
        "aux": True,
        "model": facts.model,
        "states": facts.states,
        "soft_reset": facts.soft_reset,
        "spiking": facts.spiking,
        "operations": operations or {},
    }
    spikes, levels = level_tally(run, site, "spikes", facts.spikes, run.marks.of(facts.spikes), rows)
    updates = facts.spikes.numel() // rows.count
    counts = {"spikes": spikes, "touched": touched}
    add_call(site, rows, counts, levels={"spikes": levels}, dense={"updates": updates})


def count_program(
    run: Run,
    program: Program,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    affine: tuple[Tensor, Tensor] | None,
) -> None:
    """A program of the loom ran; with `affine`, behind a normalisation that is fused into it."""
    spikes, x = outputs[0], inputs[0]
    source = run.marks.of(x)
    run.mark_outputs(list(outputs))
    with run.paused(), torch.no_grad():
        scope = run.scopes.now
        own = isinstance(scope.module, Neuron | NormNeuron)
        name = scope.name if own and scope.name else place_name(run, program.name)
        rows = lead_rows(run, spikes)
        if affine is None:
            touched = events_of(run, x, rows)
        else:
            if source.origin is not None:
                source.origin.consumers += 1
            count_norm(run, x, source, name)
            touched = _touched(run, x, affine, inputs[1] if "norm_residual" in program.inputs else None, rows)
            if "norm_residual" in program.inputs:
                _residual(run, name, x, affine, inputs[1], rows)
        spiking, soft_reset, operations = _facts(program)
        model = program.name.removeprefix("norm_").removesuffix("_step").rstrip("_")
        facts = NeuronFacts(model, x, spikes, len(program.states), soft_reset, spiking)
        _count(run, name, facts, touched, rows, operations)


@lru_cache(maxsize=1024)
def _facts(program: Program) -> tuple[bool, bool, dict[str, int]]:
    """Whether a program spikes and resets by subtraction, and its operations without a fused normalisation's."""
    spiking = any(node.op in ("spike", "round", "floor") for node in program.tape.nodes)
    operations = dict(program.operations())
    if SCALE in program.params:  # scale and shift fold into the weights; the residual is an addition of its own
        operations["multiplies"] -= 1
        operations["adds"] -= len(program.inputs)
    return spiking, spiking and "v_reset" not in program.params, operations


def _current(x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(real) * affine[0] + affine[1]


def _touched(run: Run, x: Tensor, affine: tuple[Tensor, Tensor], residual: Tensor | None, rows: Rows) -> Tensor:
    """Neurons whose input x scale + shift (+ residual) is not zero, per row."""
    channels, size = x.shape[2], x[0, 0, 0].numel()
    laid, order = lay(run, x, rows)
    whole = rows.count == x.shape[0] * x.shape[1] and all(v.numel() == channels for v in affine)
    if residual is None and whole and laid.shape[2:] in (x.shape[2:], (*x.shape[3:], channels)):
        flat = affine[0].reshape(-1).contiguous(), affine[1].reshape(-1).contiguous()
        first = laid.shape[2:] == x.shape[2:]
        sizes = (channels, size) if first else (size, channels)
        counted = tally(laid, *sizes, affine=flat, affine_on="outer" if first else "inner")
        return ordered(run, counted.events, order, rows)
    current = _current(x, affine)
    return events_of(run, current if residual is None else current + residual, rows)


def _residual(run: Run, name: str, x: Tensor, affine: tuple[Tensor, Tensor], residual: Tensor, rows: Rows) -> None:
    """The addition that is fused between normalisation and neuron."""
    site = run.site(f"{name}.add", "add")
    normed = _current(x, affine)
    found = (normed, Mark()), (residual.to(normed.dtype), Mark())
    both, either = pair_events(run, site, found, rows)
    _, levels = level_tally(run, site, "out", normed + residual, Mark(), rows)
    dense: dict[str, float] = {"numel": x.numel() // rows.count}
    add_call(site, rows, {"both": both, "any": either}, levels={"out": levels}, dense=dense)
    site.facts["aux"] = True
