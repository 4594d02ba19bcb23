"""The operations of a network as a list, which runs as an ANN or step by step as an SNN, and can be written as JSON.

Every operation but the timed ones (neurons, max pools by counts) has no memory and treats the samples of a batch alike,
so time is folded into the batch: values are `[T B, ...]` as the ANN's are `[B, ...]`. A value is dropped once nothing
reads it any more, so memory is that of a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from spikeloom.conversion.operations import CALLS

INPUT, LAYER, CALL, SITE, OUTPUT = "input", "layer", "call", "site", "output"


@dataclass(frozen=True)
class Ref:
    """The value of another node."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation.

    kind: "input"; "layer", a module of the same name; "call", the function `target` of operations.CALLS; "site", an
        activation, in whose place neurons stand; "output".
    args, kwargs: with `Ref` for the values of other nodes.
    where: file, line and code of the call in the ANN.
    label: what the ANN's author calls it: the module's path, `#2` for its second call; function, file and line.
    """

    name: str
    kind: str
    target: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    label: str = ""

    @property
    def known_as(self) -> str:
        """What messages and reports call it."""
        return self.label or self.name

    def reads(self) -> list[str]:
        """Names of the nodes whose values it takes."""
        return [ref.name for ref in _refs([list(self.args), dict(self.kwargs)])]

    def renamed(self, names: Mapping[str, str]) -> Node:
        """The same operation on other nodes' values."""
        args, kwargs = substitute([list(self.args), dict(self.kwargs)], lambda r: Ref(names.get(r.name, r.name)))
        return replace(self, args=tuple(args), kwargs=kwargs)


@dataclass
class Graph:
    """Operations in the order in which they run, and the modules of the layers and sites."""

    nodes: list[Node]
    modules: dict[str, nn.Module]

    def node(self, name: str) -> Node:
        """A node by name."""
        return next(node for node in self.nodes if node.name == name)

    def sites(self) -> list[Node]:
        """The activations."""
        return [node for node in self.nodes if node.kind == SITE]

    def readers(self, name: str) -> list[Node]:
        """The nodes that take a node's value."""
        return [node for node in self.nodes if name in node.reads()]

    def timed(self) -> set[str]:
        """Names of the sites and of everything that depends on one: what differs from step to step."""
        return self._below({node.name for node in self.sites()})

    def stepwise(self) -> set[str]:
        """Names of the nodes that must see every step; the others may run once for a still image.

        Those in front of the first neurons may, unless they read the size of the batch.
        """
        timed, constants = self.timed(), self.constants()
        if any(node.target == "size" and node.name not in timed for node in self.nodes):
            return {node.name for node in self.nodes} - constants
        return timed

    def constants(self) -> set[str]:
        """Names of the nodes that do not depend on the input."""
        inputs = {node.name for node in self.nodes if node.kind == INPUT}
        return {node.name for node in self.nodes} - self._below(inputs)

    def _below(self, found: set[str]) -> set[str]:
        for node in self.nodes:
            if not found.isdisjoint(node.reads()):
                found.add(node.name)
        return found

    def apply(self, node: Node, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        """One operation of the ANN, on given values."""
        if node.kind in (LAYER, SITE):
            return self.modules[node.name](*args, **kwargs)
        return CALLS[node.target](*args, **kwargs)

    def run(self, x: Tensor, apply: Callable[[Node, list[Any], Mapping[str, Any]], Any] | None = None) -> Any:
        """Run all operations on an input `[B, ...]`; `apply(node, args, kwargs)` replaces `Graph.apply`."""
        apply = self.apply if apply is None else apply
        values: dict[str, Any] = {}
        for node, dead in self.schedule():
            if node.kind == INPUT:
                values[node.name] = x
            elif node.kind == OUTPUT:
                return values[node.reads()[0]]
            else:
                args, kwargs = fetch(node, values)
                values[node.name] = apply(node, args, kwargs)
                del args, kwargs
            for name in dead:
                del values[name]
        raise ValueError("the graph has no output")

    def schedule(self) -> Iterator[tuple[Node, list[str]]]:
        """Each node and the names of the values that nothing reads after it."""
        last = {node.name: node.name for node in self.nodes}
        for node in self.nodes:
            for name in node.reads():
                last[name] = node.name
        dies: dict[str, list[str]] = {}
        for name, reader in last.items():
            dies.setdefault(reader, []).append(name)
        for node in self.nodes:
            yield node, dies.get(node.name, [])


def fetch(node: Node, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A node's arguments with the values of other nodes put in."""
    args, kwargs = substitute([list(node.args), dict(node.kwargs)], lambda ref: values[ref.name])
    return args, kwargs


def substitute(value: Any, change: Callable[[Ref], Any]) -> Any:
    """Replace every `Ref` in nested lists, tuples and dicts."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, Mapping):
        return {key: substitute(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(substitute(item, change) for item in value)
    if isinstance(value, slice):
        return slice(*(substitute(part, change) for part in (value.start, value.stop, value.step)))
    return value


def _refs(value: Any) -> Iterator[Ref]:
    found: list[Ref] = []
    substitute(value, lambda ref: found.append(ref))
    yield from found
