"""From a torch.fx graph to the list of operations that runs step by step: every call site gets a module of its own.

A ReLU module that is called eight times becomes eight sites, a convolution that is called twice two convolutions.
Everything that does not convert is collected and reported in one error.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from spikeloom.conversion import activations, trace
from spikeloom.conversion.graph import CALL, INPUT, LAYER, OUTPUT, SITE, Graph, Node, Ref
from spikeloom.conversion.operations import (
    DROPPED,
    FUNCTIONS,
    KEPT,
    MAX_POOLS,
    MAXIMA,
    METHODS,
    NORMS,
    PRODUCTS,
    WEIGHTED,
    advice,
)
from spikeloom.conversion.scaling import Affine, Constant
from spikeloom.conversion.trace import NotConvertibleError

_LISTED = 12
RECOMPUTED = (
    "its weight is computed at every call (weight norm, spectral norm, pruning, a parametrisation); make it permanent "
    "first: torch.nn.utils.remove_weight_norm, prune.remove, or parametrize.remove_parametrizations"
)
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
_NUMBERS = {"add": "number_add", "sub": "number_sub", "mul": "number_mul", "div": "number_div"}


@dataclass(frozen=True)
class Built:
    """A network's operations, and where they are from.

    trace: the calls that torch.fx recorded. calls: operation -> the last of the calls whose value it has, such as the
        batch normalisation that was folded into a convolution; folded: such a convolution -> that normalisation.
    """

    graph: Graph
    trace: fx.Graph
    calls: Mapping[str, str]
    folded: Mapping[str, str]


def build(ann: nn.Module) -> Built:
    """The operations of an ANN in evaluation; parameters are copies.

    Raises:
        NotConvertibleError: it cannot be traced, has no activation, or has operations that do not convert; all of them
            are listed, with their lines.
    """
    builder = _Builder(ann)
    recorded = trace.trace(ann)
    for node in recorded.nodes:
        builder.add(node)
    builder.check()
    names = [(node.name, builder.names.get(node.name)) for node in recorded.nodes]
    calls = {value.name: name for name, value in names if isinstance(value, Ref)}
    return Built(Graph(builder.used(), builder.modules), recorded, calls, builder.folded)


class _Builder:
    """The operations so far; `names` maps an fx node to the node that has its value, or to a plain number."""

    def __init__(self, ann: nn.Module) -> None:
        self.ann = ann
        self.nodes: list[Node] = []
        self.modules: dict[str, nn.Module] = {}
        self.names: dict[str, Any] = {}
        self.numbers: set[str] = set()  # nodes whose value is a size, not a tensor
        self.fixed: set[str] = set()  # nodes that do not depend on the input
        self.problems: list[str] = []
        self.folded: dict[str, str] = {}
        self.labels: Counter[str] = Counter()  # calls so far, by module or line

    def used(self) -> list[Node]:
        """The operations that the logits are made from."""
        needed = {node.name for node in self.nodes if node.kind in (INPUT, OUTPUT)}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.reads())
        return [node for node in self.nodes if node.name in needed]

    def add(self, node: fx.Node) -> None:
        """Take over one node of the trace."""
        getattr(self, f"_{node.op}")(node)

    def check(self) -> None:
        """Raise if something was refused, or if there is nothing to convert."""
        if self.problems:
            listed = "\n".join(f"  {problem}" for problem in self.problems[:_LISTED])
            if len(self.problems) > _LISTED:
                listed += f"\n  and {len(self.problems) - _LISTED} more"
            have = "has" if len(self.problems) == 1 else "have"
            raise NotConvertibleError(
                f"{type(self.ann).__name__} does not convert: {len(self.problems)} of its operations {have} no spiking "
                f"form.\n{listed}"
            )
        if not any(node.kind == SITE for node in self.used()):
            unread = [node.name for node in self.nodes if node.kind == SITE]
            raise NotConvertibleError(
                f"{type(self.ann).__name__} has no activation (ReLU, ReLU6, Hardtanh(0, m), clamp(0, c), QCFS)"
                f"{f' whose output reaches the logits ({unread[0]} does not)' if unread else ''}, so there is nothing "
                "to put neurons in the place of."
            )

    def _placeholder(self, node: fx.Node) -> None:
        if any(n.kind == INPUT for n in self.nodes):
            if node.args:  # has a default
                self.names[node.name] = node.args[0]
                return
            self.problems.append(f"a second input, {node.target!r}; wrap the model so that it takes images alone")
        self._put(Node(node.name, INPUT), node)

    def _get_attr(self, node: fx.Node) -> None:
        value: Any = self.ann
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            self.names[node.name] = value
            return
        self._put(Node(node.name, LAYER, where=trace.where(node)), node, Constant(value.detach().clone()))
        self.fixed.add(node.name)

    def _output(self, node: fx.Node) -> None:
        value = self._value(node.args[0])
        if not isinstance(value, Ref):
            self.problems.append(
                f"an output of type {type(value).__name__}; wrap the model so that it returns the logits alone"
            )
            return
        self._put(Node(node.name, OUTPUT, args=(value,)), node)

    def _call_module(self, node: fx.Node) -> None:
        module = self.ann.get_submodule(str(node.target))
        site = activations.of_module(module)
        if site is not None:
            self._site(node, copy.deepcopy(site))
        elif isinstance(module, DROPPED) or type(module).__name__ == "StochasticDepth":
            self.names[node.name] = self._value(node.args[0])
        elif isinstance(module, (*KEPT, *NORMS)) and _is_recomputed(module):
            self._refuse(node, module, RECOMPUTED)
        elif isinstance(module, NORMS):
            self._norm(node, module)
        elif type(module) in MAXIMA:
            plain = copy.deepcopy(module)
            if getattr(plain, "return_indices", False):
                self._refuse(node, module, "take away return_indices")
                return
            self._put(self._made(node, LAYER), node, plain)
        elif isinstance(module, KEPT):
            self._put(self._made(node, LAYER), node, copy.deepcopy(module))
        else:
            self._refuse(node, module)

    def _functional_norm(self, node: fx.Node) -> None:
        """F.batch_norm with statistics that the model holds."""
        given = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        held = {key: self._held(value) for key, value in given.arguments.items() if key != "input"}
        if held["training"] or any(held[k] is not None and not isinstance(held[k], Tensor) for k in ("weight", "bias")):
            self._refuse(node, None, "write it as a module, nn.BatchNorm2d, in evaluation")
            return
        self._norm(node, SimpleNamespace(**held, num_batches_tracked=None))

    def _held(self, value: Any) -> Any:
        """A tensor of the model that a node reads, or the value itself."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return value
        found: Any = self.ann
        for part in str(value.target).split("."):
            found = getattr(found, part)
        return found

    def _norm(self, node: fx.Node, norm: Any) -> None:
        """Fold a batch normalisation into the layer in front, if nothing else reads that one's output."""
        if norm.running_mean is None or norm.running_var is None:
            self._refuse(node, None, "train it with track_running_stats=True")
            return
        source: Any = node.args[0]
        value = self.names.get(source.name)
        held = getattr(value, "name", "")
        front = self.modules.get(held)
        weight, bias = affine_of(norm)
        same = [n for n in source.graph.nodes if isinstance(value, Ref) and self.names.get(n.name) == value]
        alone = all(len(n.users) == 1 for n in same)  # dropout and the like are other names of the layer's output
        if isinstance(front, WEIGHTED) and alone and len(weight) == len(front.weight):
            fold(front, weight, bias)
            self.names[node.name] = self.names[source.name]
            self.folded[held] = str(node.target) if isinstance(node.target, str) else node.name
            front.spikeloom_norm = _seen(norm)  # type: ignore[assignment]
        else:
            made = Node(node.name, LAYER, "", (self._value(source),), {}, trace.where(node))
            self._put(made, node, Affine(weight, bias))

    def _call_function(self, node: fx.Node) -> None:
        target = node.target
        rest = node.args[1:]
        site = activations.of_call(target, rest, node.kwargs)
        if site is not None:
            self._site(node, site)
        elif target is F.batch_norm:
            self._functional_norm(node)
        elif target in MAX_POOLS or getattr(target, "__name__", "") in ("boolean_dispatch", "fn"):
            self._max_pool(node, target)
        elif _does_nothing(node):
            self.names[node.name] = self._value(node.args[0])
        elif target is getattr and node.args[1] == "shape":
            self._call(node, "size", node.args[:1], {})
        elif target in FUNCTIONS:
            self._call(node, FUNCTIONS[target], node.args, node.kwargs)
        else:
            self._refuse(node)

    def _call_method(self, node: fx.Node) -> None:
        target = str(node.target)
        site = activations.of_call(target, node.args[1:], node.kwargs)
        if site is not None:
            self._site(node, site)
        elif target in METHODS:
            self._call(node, METHODS[target], node.args, node.kwargs)
        else:
            self._refuse(node)

    def _max_pool(self, node: fx.Node, target: Any) -> None:
        if target not in MAX_POOLS:
            self._refuse(node)
            return
        kwargs = dict(node.kwargs)
        source = node.args[0] if node.args else kwargs.pop("input")
        pool = MAX_POOLS[target](*node.args[1:], **kwargs)
        self._put(Node(node.name, LAYER, "", (self._value(source),), {}, trace.where(node)), node, pool)

    def _call(self, node: fx.Node, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        given = [self._value(arg) for arg in args]
        named = {("input" if key == "x" else key): self._value(value) for key, value in kwargs.items()}
        if name == "contiguous":
            named = {}
        reads = Node("", CALL, "", tuple(given), named).reads()
        numeric = bool(reads) and all(read in self.numbers for read in reads)
        if numeric and name in _NUMBERS:
            name = _NUMBERS[name]
        if (name == "floordiv" and not numeric) or named.get("rounding_mode") is not None:
            self._refuse(node, None, "divide without rounding")
            return
        varying = [read for read in reads if read not in self.fixed | self.numbers]
        if name in PRODUCTS and (len(varying) > 1 or (name == "div" and varying and given[0] != Ref(varying[0]))):
            self._refuse(node, None, "a product of two activations has no spiking form here; train without it")
            return
        name = "number_floordiv" if name == "floordiv" else name
        self._put(Node(node.name, CALL, name, tuple(given), named, trace.where(node)), node)
        if name == "size" or numeric:
            self.numbers.add(node.name)
        if not varying:
            self.fixed.add(node.name)

    def _site(self, node: fx.Node, site: nn.Module) -> None:
        value = self._value(node.args[0])
        if isinstance(value, Ref) and value.name in self.fixed:
            self._refuse(
                node, None, "an activation of a parameter alone; compute it in __init__ and keep it in a buffer"
            )
            return
        self._put(Node(node.name, SITE, "", (value,), {}, trace.where(node)), node, site)

    def _made(self, node: fx.Node, kind: str) -> Node:
        args = tuple(self._value(arg) for arg in node.args)
        kwargs = {key: self._value(value) for key, value in node.kwargs.items()}
        return Node(node.name, kind, "", args, kwargs, trace.where(node))

    def _put(self, made: Node, node: fx.Node, module: nn.Module | None = None) -> None:
        made = replace(made, label=self._label(made, node))
        self.nodes.append(made)
        self.names[node.name] = Ref(made.name)
        if made.kind == LAYER and made.reads() and self.fixed.issuperset(made.reads()):
            self.fixed.add(made.name)
        if module is not None:
            self.modules[made.name] = _without_hooks(module).requires_grad_(False).eval()

    def _label(self, made: Node, node: fx.Node) -> str:
        """What a report calls an operation."""
        if made.kind not in (LAYER, SITE):
            return ""
        label = trace.label_of(node)
        self.labels[label] += 1
        return label if self.labels[label] == 1 else f"{label}#{self.labels[label]}"

    def _value(self, value: Any) -> Any:
        """A node's argument with our references in it."""
        if isinstance(value, fx.Node):
            return self.names.get(value.name)
        if isinstance(value, (list, tuple)):
            return type(value)(self._value(item) for item in value)
        if isinstance(value, slice):
            return slice(self._value(value.start), self._value(value.stop), self._value(value.step))
        return value

    def _refuse(self, node: fx.Node, module: nn.Module | None = None, what: str = "") -> None:
        name = trace.name_of(node, module)
        kind = type(module).__name__ if module is not None else name
        self.problems.append(f"{name} ({trace.where(node)}): {what or advice(kind)}")
        self.names[node.name] = Ref(node.name)


def _without_hooks(module: nn.Module) -> nn.Module:
    """A copy of the ANN's module without the hooks that came along; if they change values, `faithful` finds it."""
    for part in module.modules():
        for name in _HOOKS:
            getattr(part, name, {}).clear()
    return module


def _is_recomputed(module: nn.Module) -> bool:
    """Whether a module's weight is made from other parameters at every call."""
    return is_parametrized(module) or not isinstance(getattr(module, "weight", None), (nn.Parameter, type(None)))


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and shift `[C]` of a batch normalisation in evaluation."""
    mean, var = norm.running_mean.detach(), norm.running_var.detach()
    factor = 1 / torch.sqrt(var + norm.eps)
    if norm.weight is not None:
        factor = norm.weight.detach() * factor
    bias = -mean * factor if norm.bias is None else norm.bias.detach() - mean * factor
    return factor, bias


def fold(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Put a factor and a shift of the output channels into a layer."""
    kernel = layer.weight.detach()
    shape = [-1] + [1] * (kernel.ndim - 1)
    old = torch.zeros_like(bias) if layer.bias is None else layer.bias.detach()
    layer.weight = nn.Parameter((kernel * weight.view(shape)).to(kernel.dtype), requires_grad=False)
    layer.bias = nn.Parameter((old * weight + bias).to(kernel.dtype), requires_grad=False)


def _seen(norm: Any) -> tuple[Tensor, Tensor] | None:
    """What a trained normalisation says of its output: mean `[C]` and deviation `[C]`; None if it saw no data."""
    if norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 0:
        return None
    var = norm.running_var.detach()
    factor, _ = affine_of(norm)
    mean = torch.zeros_like(var) if norm.bias is None else norm.bias.detach().clone()
    return mean, factor.abs() * torch.sqrt(var) + 1e-12


def _does_nothing(node: fx.Node) -> bool:
    """Dropout and stochastic depth in evaluation."""
    name = getattr(node.target, "__name__", "")
    signature = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth"}
    if name not in signature or not callable(node.target):
        return False
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        given.apply_defaults()
    except (TypeError, ValueError):
        return False
    return not given.arguments.get("training", True)
