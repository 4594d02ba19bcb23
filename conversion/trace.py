"""A model's forward as a torch.fx graph, with errors that say where tracing failed and what to do."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import PurePath
from typing import Any

import torch
from torch import fx, nn

from spikeloom.conversion.activations import TRAINED
from spikeloom.neurons import Neuron

_QUESTIONS: tuple[Any, ...] = (
    *(getattr, str, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(operator.getitem, operator.mod, "size", "dim"),
)
"""What asserts ask, and nothing else needs: without side effects."""


class NotConvertibleError(ValueError):
    """A model that cannot become a spiking network as it is."""


class _Tracer(fx.Tracer):
    """Keeps the activations of this package whole, and remembers the line of every call."""

    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is not looked into."""
        return isinstance(m, TRAINED) or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def trace(ann: nn.Module) -> fx.Graph:
    """Record the model's forward in evaluation.

    Raises:
        NotConvertibleError: it is spiking already, or its control flow depends on values.
    """
    _check_kind(ann)
    neurons = [name for name, module in ann.named_modules() if isinstance(module, Neuron) or _streams(module)]
    if neurons:
        raise NotConvertibleError(
            f"{type(ann).__name__} has spiking neurons already ({neurons[0] or 'itself'}"
            f"{f' and {len(neurons) - 1} more' if len(neurons) > 1 else ''}); convert takes the ANN that it was made "
            "from, with ReLUs."
        )
    try:
        with evaluating(ann):
            return _without_asserts(_positional(_Tracer().trace(ann)))
    except Exception as error:
        raise NotConvertibleError(_says(ann, error)) from error


def _check_kind(ann: Any) -> None:
    if not isinstance(ann, nn.Module):
        raise NotConvertibleError(f"convert got {type(ann).__name__}; expected a network, a torch.nn.Module.")
    inside = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
    name = type(ann).__name__
    if name in inside and isinstance(getattr(ann, inside[name], None), nn.Module):
        raise NotConvertibleError(f"{name} is a wrapper; pass the network in it, model.{inside[name]}.")
    if isinstance(ann, torch.jit.ScriptModule):
        raise NotConvertibleError(f"{name} is TorchScript, which cannot be traced; pass the network it was made from.")


def _positional(graph: fx.Graph) -> fx.Graph:
    """`relu(input=x)` as `relu(x)`, and modules with one argument by any name."""
    for node in graph.nodes:
        alone = node.op == "call_module" and len(node.kwargs) == 1
        name = next(iter(node.kwargs)) if alone else "input"
        if not node.args and name in node.kwargs:
            kwargs = dict(node.kwargs)
            node.args = (kwargs.pop(name),)
            node.kwargs = kwargs
    return graph


def _without_asserts(graph: fx.Graph) -> fx.Graph:
    """Without calls of torch._assert, and what was asked for them alone."""
    for node in reversed(graph.nodes):
        if node.target is torch._assert or (not node.users and node.target in _QUESTIONS):
            graph.erase_node(node)
    return graph


def _streams(module: nn.Module) -> bool:
    return bool(getattr(module, "streams", False))


def _says(ann: nn.Module, error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _inside(f.filename)]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return (
        f"The forward of {type(ann).__name__} cannot be traced by torch.fx{place} ({type(error).__name__}: {error}). "
        "Tracing follows one path: an `if`, a loop or an assert on the values or shapes of tensors has none. Take the "
        "decision in __init__, mark a helper without activations by torch.fx.wrap, or convert the part of the model "
        "that has no such branch."
    )


def _inside(filename: str) -> bool:
    return any(part in filename for part in ("/torch/", "/conversion/trace.py", "<eval_with_key>"))


def where(node: fx.Node) -> str:
    """`file:line: code` of the model's call that a node records; the module's name where a container of torch calls."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines()]
    found = ""
    for head, code in pairwise([*lines, ""]):
        if head.startswith('File "') and not _inside(head.split('"')[1]):
            number = head.partition('", line ')[2].partition(",")[0]
            found = f"{head.split(chr(34))[1]}:{number}: {'' if code.startswith('File ') else code}"
    return found or (f"module {node.target}" if node.op == "call_module" else node.name)


def name_of(node: fx.Node, module: nn.Module | None) -> str:
    """What a node calls, in words."""
    if module is not None:
        return f"{type(module).__name__} {node.target!r}"
    target: Any = node.target
    return str(getattr(target, "__name__", target))


def label_of(node: fx.Node) -> str:
    """A call as the author of the model knows it: the path of its module, or `relu net.py:12`."""
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    path, colon, rest = where(node).partition(":")
    name = name_of(node, None)
    return f"{name} {PurePath(path).name}:{rest.partition(':')[0]}" if colon else name
