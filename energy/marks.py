"""Where a tensor comes from: weight or activation, the user's own input or computed, and from which linear operation.

Being a weight is not a matter of values: a {0, 1} weight is no spike. It is inherited: what is computed from
parameters, buffers and constants alone is a weight, what depends on a network input is an activation. The mark
belongs to the storage, so views share it and an in-place write through one view is seen through all.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

if TYPE_CHECKING:
    from spikeloom.energy.sites import Site


@dataclass
class Origin:
    """A linear operation's output, and how many operations other than views and copies have read it."""

    site: Site
    consumers: int = 0


@dataclass
class Mark:
    """What is known of a storage.

    Attributes:
        weight: computed from parameters, buffers and constants alone.
        constant: computed from constants alone; an all-zero one may be the initial state of a recurrence.
        network_input: passed in by the user, perhaps copied or cast since.
        name: of the parameter it is, or is a copy of.
        origin: the linear operation that wrote it.
        padding: zeros that a `pad` put around every dimension, as (before, after) of the last dimensions.
        expanded: an activation times a broadcast weight, larger than the activation: half of a product by hand.
        memo: counts of this very content, by how they were taken.
    """

    weight: bool = False
    network_input: bool = False
    constant: bool = False
    name: str | None = None
    origin: Origin | None = None
    padding: tuple[tuple[int, int], ...] = ()
    expanded: bool = False
    memo: dict[Hashable, Any] = field(default_factory=dict)

    def become(self, other: Mark) -> None:
        """Take over after an in-place write; counts of the old content are void."""
        self.weight, self.network_input, self.name = other.weight, other.network_input, None
        self.constant = other.constant
        self.origin, self.padding = other.origin, ()
        self.expanded = other.expanded
        self.memo = {}  # a copy may share the old one

    def copied(self, whole: bool = False) -> Mark:
        """The mark of a copy or cast; a copy of the `whole` storage has the same counts."""
        mark = Mark(self.weight, self.network_input, self.constant, self.name, self.origin, self.padding)
        mark.expanded = self.expanded
        if whole and not self.weight:
            mark.memo = self.memo
        return mark


class Marks:
    """Marks by storage. A weak reference keeps an address from being used again while its mark is held."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[StorageWeakRef, Mark]] = {}
        self._weights: dict[int, tuple[Any, Mark]] = {}

    def of(self, tensor: Tensor) -> Mark:
        """The tensor's mark; one that was never seen is a network input, or a weight if it asks for a gradient."""
        storage = _storage(tensor)
        if storage is None:
            return Mark()
        key = storage._cdata
        found = self._weights.get(key) or self._held.get(key)
        if found is not None:
            return found[1]
        weight = isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf)
        mark = Mark(weight=weight, network_input=not weight)
        self._held[key] = (StorageWeakRef(storage), mark)
        return mark

    def put(self, tensor: Tensor, mark: Mark) -> None:
        """Mark a fresh tensor."""
        storage = _storage(tensor)
        if storage is not None and storage._cdata not in self._weights:
            self._held[storage._cdata] = (StorageWeakRef(storage), mark)

    def put_all(self, output: Any, mark: Mark) -> None:
        """Mark every tensor of a nested result, each with a copy: counts of one are none of another."""
        if isinstance(output, Tensor):
            self.put(output, mark)
        elif isinstance(output, list | tuple):
            for part in output:
                self.put_all(part, mark.copied())

    def weights(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Mark parameters and buffers; the storages are held, so they stay weights for the whole run."""
        for name, tensor in named:
            storage = _storage(tensor)
            if storage is not None and storage._cdata not in self._weights:
                self._weights[storage._cdata] = (storage, Mark(weight=True, name=name))

    def renew(self) -> None:
        """Look at the weights' values again."""
        for _, mark in self._weights.values():
            mark.memo = {}

    def forget(self) -> None:
        """Drop the marks of activations."""
        self._held.clear()


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse tensors and wrappers have none
        return None
