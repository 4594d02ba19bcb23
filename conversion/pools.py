"""What becomes of the max pools of an ANN, and where the neurons stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from spikeloom.conversion.graph import LAYER, SITE, Graph, Node, Ref
from spikeloom.conversion.operations import MAXIMA
from spikeloom.conversion.trace import NotConvertibleError

_AVERAGES: dict[type[nn.Module], type[nn.Module]] = {nn.MaxPool1d: nn.AvgPool1d, nn.MaxPool2d: nn.AvgPool2d}


def place_pools(graph: Graph, choice: str) -> tuple[Graph, frozenset[str]]:
    """Treat the max pools as `Settings.max_pool` says.

    Returns:
        The graph, and the names of the pools that count spikes over time.

    Raises:
        NotConvertibleError: "refuse", or "avg" of a pool without such a form.
    """
    pools = [node for node in graph.nodes if node.kind == LAYER and isinstance(graph.modules[node.name], MAXIMA)]
    if pools and choice == "refuse":
        listed = ", ".join(f"{node.name} ({node.where})" for node in pools)
        raise NotConvertibleError(
            f"max_pool='refuse', and the network has {len(pools)}: {listed}. Train it with average pooling, or choose "
            "'auto' (exact), 'before', 'or' or 'avg'."
        )
    if choice == "avg":
        for node in pools:
            graph.modules[node.name] = _average(graph.modules[node.name], node)
        return graph, frozenset()
    for node in pools if choice in ("auto", "before") else []:
        graph = _swapped(graph, node, everywhere=choice == "before")
    timed = graph.timed()
    counted = {node.name for node in pools if node.name in timed} if choice in ("auto", "exact") else set()
    return graph, frozenset(counted)


def _swapped(graph: Graph, pool: Node, everywhere: bool) -> Graph:
    """The pool in front of the activation that only it reads; else, or after spikes unless `everywhere`, as it was."""
    source = graph.node(pool.reads()[0])
    if source.kind != SITE or len(graph.readers(source.name)) > 1:
        return graph
    current = source.reads()[0]
    if not everywhere and current in graph.timed():
        return graph
    first = replace(pool, args=(Ref(current), *pool.args[1:]))
    then = replace(source, args=(Ref(pool.name),))
    nodes = []
    for node in graph.nodes:
        if node.name == source.name:
            continue
        nodes += [first, then] if node.name == pool.name else [node.renamed({pool.name: source.name})]
    return Graph(nodes, graph.modules)


def _average(pool: Any, node: Node) -> nn.Module:
    if type(pool) not in _AVERAGES or pool.dilation not in (1, (1, 1)):
        raise NotConvertibleError(
            f"{node.name} ({node.where}) is {pool}, which has no average form; use max_pool='auto'."
        )
    return _AVERAGES[type(pool)](
        pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode, count_include_pad=False
    )
