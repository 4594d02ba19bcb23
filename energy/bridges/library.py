"""What the bridges share: a role for a class of neurons that know whether a call is one time step or all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeloom.energy.marks import Mark
from spikeloom.energy.meter import consumed
from spikeloom.energy.rules.linear import count_linear
from spikeloom.energy.rules.neurons import NeuronFacts, count_neurons
from spikeloom.energy.scopes import ROLES, Role

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


@dataclass(frozen=True)
class Call:
    """One call of a library's module, once its forward is over.

    Attributes:
        name: of the module in the network.
        multi: the call was all time steps, [T, B, ...]; False: one of them, [B, ...]; None: its shape says.
        kept: what `begin` returned before the call.
    """

    run: Run
    module: Any
    name: str
    args: tuple[Any, ...]
    output: Any
    multi: bool | None
    kept: Any

    @property
    def x(self) -> Tensor:
        """The input."""
        x: Tensor = self.args[0]
        return x

    @property
    def first(self) -> Tensor:
        """The output, or the first of several."""
        first: Tensor = self.output[0] if isinstance(self.output, list | tuple) else self.output
        return first

    def under(self, name: str) -> str:
        """The name of a part of the module."""
        return f"{self.name}.{name}" if self.name else name


Describe = Callable[[Call], NeuronFacts]


def add_neuron(
    kind: type[nn.Module],
    describe: Describe,
    multi: Callable[[Any], bool | None],
    *,
    silent: bool = False,
    begin: Callable[[Any, tuple[Any, ...]], Any] | None = None,
    states: tuple[str, ...] = (),
) -> None:
    """Have a class of neurons counted, unless the user has registered it already.

    Args:
        kind: the class; subclasses are included.
        describe: the facts of a call; of silent ones it also counts the linear operations, with `count_weight`.
        multi: whether a module's calls are all time steps or one; None if it has no states and does not care.
        silent: see `Role`.
        begin, states: see `Role`.
    """

    def finish(run: Run, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name, scope = run.scopes.name_of(module), run.scopes.now
        _check(name, module, args)
        call = Call(run, module, name, args, output, multi(module), scope.kept)
        with torch.no_grad():
            facts = describe(call)
            run.mark_outputs(output)
            count_neurons(run, name, _placed(call, facts))

    ROLES.setdefault(kind, Role(silent=silent, quiet=True, begin=begin, finish=finish, states=states))


def _check(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    what = f"{name or 'the model'} ({type(module).__name__})"
    if not args or not isinstance(args[0], Tensor):
        raise TypeError(
            f"{what} was not called with a tensor first; give its input by position: the counter reads it there"
        )
    if args[0].layout != torch.strided:
        raise ValueError(f"{what} got a {args[0].layout} input; only dense tensors are counted: call .to_dense() on it")


def _placed(call: Call, facts: NeuronFacts) -> NeuronFacts:
    """The facts with the scope set to what the module knows about time, which shapes alone can leave open.

    Raises:
        ValueError: the module was called with one step, and the batch says that its first axis is time.
    """
    scope, batch = call.run.scopes.now, call.run.current
    assert batch is not None
    T, B, shape = batch.T, batch.B, facts.spikes.shape
    if call.multi:
        if len(shape) > 1 and shape[0] == T and shape[1] % B == 0:
            scope.lead, scope.order = "multi", "TB"
            return replace(facts, current=facts.current.flatten(0, 1), spikes=facts.spikes.flatten(0, 1))
        return facts
    if call.multi is None:
        return facts
    if shape[0] % B or (shape[0] == T and T != B):
        raise ValueError(
            f"{call.name or 'the model'} ({type(call.module).__name__}) takes one time step [B, ...] per call and gave "
            f"{list(shape)}, in a batch of T={T} steps of B={B} samples. Where time is a loop around the network, put "
            "the loop into `with run.batch(T=..., B=...):`; where it is a loop inside, give count(net, T=...)"
        )
    scope.lead = "step"
    return facts


def count_weight(
    call: Call, name: str, x: Tensor, weight: Tensor, bias: Tensor | None = None, mark: Mark | None = None
) -> None:
    """Count x [..., in] through weight [out, in] as a linear operation of a silent module.

    Args:
        name: of the operation, below the module's.
        mark: of an x that did not come through the network, such as the spikes of the last step.
    """
    run = call.run
    if mark is None:
        mark = run.marks.of(x)
        consumed([(x, mark)])
    count_linear(run, x.detach(), mark, weight.detach().t(), Mark(weight=True), bias is not None, call.under(name))


def delayed(spikes: Tensor, first: Tensor | None = None) -> Tensor:
    """Spikes [T, ...] one step later, with `first` [...] (None: no spikes) at the beginning."""
    start = torch.zeros_like(spikes[:1]) if first is None else first.unsqueeze(0).expand_as(spikes[:1])
    return torch.cat([start, spikes[:-1]])
