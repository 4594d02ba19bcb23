"""A network with QCFS in the place of every ReLU, to be trained (or trained on) before it is converted."""

from __future__ import annotations

import copy

from torch import fx, nn

from spikeloom.conversion import activations
from spikeloom.conversion.activations import Rectify
from spikeloom.conversion.qcfs import QCFS
from spikeloom.conversion.trace import NotConvertibleError, trace


def with_qcfs(ann: nn.Module, L: int = 4, theta: float = 8.0) -> fx.GraphModule:
    """Copy an ANN with a QCFS activation of its own at every call of a ReLU, ReLU6 or clamp.

    Parameters keep their names; the activations are `qcfs_0`, `qcfs_1`, ... Dropout must be a module: functional
    dropout is traced in evaluation.

    Args:
        L: levels. theta: thresholds before training, at most the clip of the activation that is replaced.

    Raises:
        NotConvertibleError: it cannot be traced, or has no such activation.
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
