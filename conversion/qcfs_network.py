"""A network with QCFS in the place of every ReLU, to be trained (or trained on) before it is converted."""

from __future__ import annotations

import copy

from torch import fx, nn

from spikeloom.conversion import activations
from spikeloom.conversion.activations import Rectify
from spikeloom.conversion.qcfs import QCFS
from spikeloom.conversion.trace import NotConvertibleError, name_of, trace, where


def with_qcfs(ann: nn.Module, L: int = 4, theta: float = 8.0) -> fx.GraphModule:
    """Copy an ANN with a QCFS activation of its own at every call of a ReLU, ReLU6 or clamp.

    Parameters keep their names; the activations are `qcfs_0`, `qcfs_1`, ... Dropout must be a module: functional
    dropout is traced in evaluation.

    Args:
        L: levels. theta: thresholds before training, at most the clip of the activation that is replaced.

    Raises:
        NotConvertibleError: it cannot be traced, has no such activation, or one that works in place on what is read
            again: QCFS does not, so the copy would compute something else.
    """
    model = copy.deepcopy(ann)
    graph = trace(model)
    count = 0
    for node in list(graph.nodes):
        if node.op == "call_module":
            site = activations.of_module(model.get_submodule(str(node.target)))
        elif node.op in ("call_function", "call_method"):
            site = activations.of_call(node.target, node.args[1:], node.kwargs)
        else:
            site = None
        if not isinstance(site, Rectify):
            continue
        if _read_again(node, model):
            raise NotConvertibleError(
                f"{name_of(node, None)} ({where(node)}) works in place on a value that is read again, and QCFS would "
                "leave that value as it was. Write inplace=False, and go on with what the activation returns."
            )
        name = f"qcfs_{count}"
        model.add_module(name, QCFS(L, theta if site.top is None else min(theta, site.top)))
        with graph.inserting_after(node):
            new = graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        count += 1
    if not count:
        raise NotConvertibleError(f"{type(ann).__name__} has no ReLU, ReLU6 or clamp to replace.")
    return fx.GraphModule(model, graph).train(ann.training)


def _read_again(node: fx.Node, model: nn.Module) -> bool:
    """Whether an activation changes its input, and something reads that (or nothing the output) afterwards."""
    if node.op == "call_module":
        inplace = bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    else:
        name = str(getattr(node.target, "__name__", node.target))
        flag = node.args[-1] if len(node.args) > 1 and isinstance(node.args[-1], bool) else False
        inplace = name.endswith("_") or bool(node.kwargs.get("inplace", flag))
    nodes = list(node.graph.nodes)
    after = set(nodes[nodes.index(node) + 1 :])
    source = node.args[0]
    return inplace and isinstance(source, fx.Node) and not after.isdisjoint(source.users)
