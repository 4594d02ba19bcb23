"""`Meter` and `Functions`: the modes that see every operation, and the table of what to do with each.

`Meter` sits below autograd, where functional code shows too. `Functions` catches a few functions whole that would reach
the dispatcher in pieces or in a fused form with another meaning of their axes (attention, recurrent layers).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from spikeloom.energy.marks import Mark

if TYPE_CHECKING:
    from spikeloom.energy.run import Run

Rule = Callable[["Run", Any, tuple[Any, ...], dict[str, Any]], Any]
"""Runs an operation, `rule(run, func, args, kwargs) -> its result`, and counts it."""

RULES: dict[str, Rule] = {}
"""By operator name without overload, such as "aten::mm"."""
FUNCTIONS: dict[Any, Rule] = {}
"""By Python function, such as `torch.nn.functional.scaled_dot_product_attention`."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name, "aten::" understood."""

    def register(found: Rule) -> Rule:
        for name in names:
            RULES[name if "::" in name else f"aten::{name}"] = found
        return found

    return register


def register_op(name: str, found: Rule) -> None:
    """Give the counter a rule for an operator.

    Args:
        name: "namespace::operator".
        found: `rule(run, func, args, kwargs)`; runs `func(*args, **kwargs)`, counts, and returns the result. It counts
            with the functions of `spikeloom.energy.rules`.
    """
    if "::" not in name:
        raise ValueError(f"got operator name {name!r}; expected 'namespace::operator'")
    RULES[name] = found
    _PLANS.clear()


@lru_cache(maxsize=1)
def _counting() -> frozenset[Rule]:
    """The rules that look at values."""
    names = ("add", "mul", "mm", "bmm", "addmm", "baddbmm", "mv", "dot", "convolution", "sum")
    return frozenset(RULES[f"aten::{name}"] for name in names)


class Meter(TorchDispatchMode):
    """Sends every operator to its rule while the run is counting."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled while the counter watches, so torch need not guard each call against it."""
        return False

    def __init__(self, run: Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.run.counting:
            return func(*args, **kwargs)
        plan = _PLANS.get(func)
        if plan is None:
            plan = _PLANS[func] = _plan(func)
        if plan is decompose:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            _PLANS[func] = plan = unknown
        if plan in _counting() and any(isinstance(x, Tensor) and x.is_complex() for x in args):
            plan = unknown  # complex activations have no spikes to count
        with torch._C.DisableTorchFunction():  # what the rules ask of tensors is not for `Functions`
            return plan(self.run, func, args, kwargs)


class Functions(TorchFunctionMode):
    """Sends the functions of `FUNCTIONS` to their rules, which run them with nothing else counted."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = FUNCTIONS.get(func)
        if found is None or not self.run.counting:
            return func(*args, **(kwargs or {}))
        return found(self.run, func, args, kwargs or {})


_PLANS: dict[Any, Rule] = {}


def _plan(func: Any) -> Rule:
    """What to do with an operator: its rule, else by what torch knows of it."""
    name = func._schema.name
    if name in RULES:
        return RULES[name]
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return decompose
    if getattr(func, "is_view", False):
        return view
    if torch.Tag.pointwise in func.tags:
        return RULES["aten::pointwise"]
    return unknown


def tensors_of(arguments: Any) -> list[Tensor]:
    """The tensors in nested arguments."""
    found: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found += tensors_of(argument)
    return found


def activations(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Tensor, Mark]]:
    """The tensors among the arguments that are activations, with their marks."""
    tensors = tensors_of((*args, *kwargs.values()))
    return [(tensor, mark) for tensor in tensors if not (mark := run.marks.of(tensor)).weight]


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operator writes to."""
    if not func._schema.is_mutable:
        return []
    found = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name) if index >= len(args) else args[index]
            found += tensors_of([value])
    return found


def finish_marks(run: Run, func: Any, args: Any, kwargs: Any, result: Any, mark: Mark) -> Any:
    """Mark an operator's results and what it wrote into; returns the results."""
    outputs = written(func, args, kwargs)
    for tensor in outputs:
        run.marks.of(tensor).become(mark)
    ids = {id(tensor) for tensor in outputs}
    for tensor in tensors_of(result if isinstance(result, list | tuple) else [result]):
        if id(tensor) not in ids:
            run.marks.put(tensor, mark.copied())
    return result


def made(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None) -> Mark:
    """The mark of what is computed from no activation: a weight, or a constant if nothing but constants went in."""
    tensors = tensors_of((*args, *kwargs.values()))
    return Mark(weight=True, constant=all(run.marks.of(t).constant for t in tensors), name=name)


def is_whole(tensor: Tensor) -> bool:
    """Is every element of the storage seen, once?"""
    if tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
        return False
    return (
        tensor.is_contiguous()
        or tensor.permute(*sorted(range(tensor.dim()), key=tensor.stride, reverse=True)).is_contiguous()
    )


def consumed(found: list[tuple[Tensor, Mark]]) -> None:
    """Note that an operation read these activations."""
    for mark in {id(mark): mark for _, mark in found}.values():
        if mark.origin is not None:
            mark.origin.consumers += 1


# --- what needs no counting ---------------------------------------------------------------------------------------


def decompose(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Take a composite operator apart (`Meter` does it, with itself watching the parts)."""
    raise AssertionError


def view(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """The result shares its storage and with it its mark."""
    return func(*args, **kwargs)


@rule("clone", "_to_copy", "contiguous", "_unsafe_view", "_reshape_copy", "lift_fresh", "alias_copy", "expand_copy")
@rule("view_copy", "permute_copy", "t_copy", "_conj_physical", "detach_", "_pin_memory")
def copy(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """A copy or cast keeps what the original is."""
    result = func(*args, **kwargs)
    source = args[0]
    mark = run.marks.of(source)
    same = isinstance(result, Tensor) and result.dtype == source.dtype and result.numel() == source.numel()
    run.mark_outputs(result, mark.copied(whole=same and is_whole(source)))
    return result


@rule("copy_", "fill_", "zero_", "set_", "resize_", "cat", "stack", "index", "index_select", "gather", "where", "take")
@rule("masked_fill", "masked_fill_", "masked_select", "scatter", "scatter_", "index_put", "index_put_", "slice_scatter")
@rule(
    "select_scatter",
    "roll",
    "flip",
    "repeat",
    "tril",
    "triu",
    "repeat_interleave",
    "embedding",
    "im2col",
    "unfold_copy",
)
@rule("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d")
@rule("replication_pad3d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest1d")
@rule("upsample_nearest2d", "upsample_nearest3d", "bucketize", "nonzero", "sort", "topk", "argmax", "argmin", "argsort")
@rule("max", "min", "amax", "amin", "aminmax", "any", "all", "count_nonzero", "_unique2", "isin", "equal", "maximum")
@rule("minimum", "gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_not", "logical_xor")
@rule("bitwise_and", "bitwise_or", "bitwise_not", "isnan", "isinf", "isfinite", "_local_scalar_dense", "is_nonzero")
@rule("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_full", "new_empty")
@rule("new_empty_strided", "rand_like", "randn_like", "bernoulli", "bernoulli_", "normal_", "uniform_", "rand", "randn")
@rule("randint", "randperm", "empty", "empty_strided", "zeros", "ones", "full", "arange", "linspace", "eye")
@rule("scalar_tensor", "tril_indices", "triu_indices", "_assert_async", "_assert_tensor_metadata")
def move(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Moves, compares or makes data: no operation that anyone charges. Of inputs alone it makes an input."""
    found = activations(run, args, kwargs)
    consumed(found)
    result = func(*args, **kwargs)
    mark = Mark(network_input=all(m.network_input for _, m in found)) if found else made(run, args, kwargs)
    return finish_marks(run, func, args, kwargs, result, mark)


@rule("constant_pad_nd")
def pad(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Explicit zero padding is remembered: a convolution behind it makes no terms with it."""
    found = activations(run, args, kwargs)
    consumed(found)
    result = func(*args, **kwargs)
    value = args[2] if len(args) > 2 else kwargs.get("value", 0)
    sides = list(args[1] if len(args) > 1 else kwargs["pad"])
    mark = Mark(network_input=found[0][1].network_input) if found else made(run, args, kwargs)
    if value == 0 and min(sides) >= 0:
        mark.padding = tuple((sides[i], sides[i + 1]) for i in range(len(sides) - 2, -1, -2))
    run.mark_outputs(result, mark)
    return result


def unknown(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Listed as uncounted if it reads an activation and writes floating-point numbers; strict runs raise."""
    found = activations(run, args, kwargs)
    consumed(found)
    result = func(*args, **kwargs)
    outputs = tensors_of(result if isinstance(result, list | tuple) else [result])
    real = [t for t in outputs if t.is_floating_point() or t.is_complex()]
    if found and real and not run.scopes.now.quiet:
        run.unknown(func._schema.name, real)
    return finish_marks(run, func, args, kwargs, result, Mark() if found else made(run, args, kwargs))
