"""What a training does to a network besides calling it, where the network has a method for that.

`settle_()`: after every step of the optimiser, on the device, without waiting for it; repeating it changes nothing.
`rounded()`: a context in which the network is as it will be in inference.
`whole_sequence()`: a context in which a sequence keeps its number of steps in every layer, for a count of operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Settles(Protocol):
    """A network whose parameters have a range."""

    def settle_(self) -> None:
        """Put them into it."""


@runtime_checkable
class Rounds(Protocol):
    """A network that is trained in another form than it is used in."""

    def rounded(self) -> AbstractContextManager[None]:
        """The form in which it is used, and its own afterwards."""


@runtime_checkable
class Lengthens(Protocol):
    """A network whose outputs have more steps than its inputs."""

    def whole_sequence(self) -> AbstractContextManager[int]:
        """As many steps as the input has; gives how many more there are otherwise."""


def settle_model(model: nn.Module) -> None:
    """Call what follows a step of the optimiser."""
    if isinstance(model, Settles):
        model.settle_()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and the form of inference inside of a `with`; everything back afterwards."""
    was_training = model.training
    with model.rounded() if isinstance(model, Rounds) else nullcontext():
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


@contextmanager
def countable(model: nn.Module) -> Iterator[int]:
    """`evaluating`, with one number of steps in all layers; gives how many zeros belong behind the input for that."""
    with evaluating(model), model.whole_sequence() if isinstance(model, Lengthens) else nullcontext(0) as steps:
        yield steps
