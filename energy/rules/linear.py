"""Matrix products and convolutions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spikeloom.energy.counts import Geometry
from spikeloom.energy.marks import Mark, Origin
from spikeloom.energy.meter import consumed, finish_marks, made, rule, unknown
from spikeloom.energy.rows import Rows
from spikeloom.energy.rules.measure import (
    add_call,
    check_static,
    level_tally,
    levels_of,
    on_device,
    param_name,
    place_name,
    rows_of,
    table_of,
)
from spikeloom.energy.sites import Levels, Site
from spikeloom.energy.terms import Space, all_present, conv_table, live, nonzero_per_input, spread, transposed_table
from spikeloom.kernels.tally import BEYOND_ONE, NON_FINITE, tally

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


# --- products -----------------------------------------------------------------------------------------------------


@rule("mm", "bmm", "_int_mm")
def product_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """[.., m, k] @ [.., k, n]."""
    return _product(run, func, args, kwargs, args[0], args[1], None)


@rule("addmm", "baddbmm")
def biased_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """A product with something added: a weight is a bias."""
    return _product(run, func, args, kwargs, args[1], args[2], args[0])


@rule("mv")
def vector_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """[m, k] @ [k]."""
    return _product(run, func, args, kwargs, args[0], args[1].unsqueeze(-1), None)


@rule("addmv")
def biased_vector_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """A matrix-vector product with something added."""
    return _product(run, func, args, kwargs, args[1], args[2].unsqueeze(-1), args[0])


@rule("dot", "vdot")
def dot_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """[k] @ [k]."""
    return _product(run, func, args, kwargs, args[0].unsqueeze(0), args[1].unsqueeze(-1), None)


def _product(run: Run, func: Any, args: Any, kwargs: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Any:
    marks = run.marks
    left, right = marks.of(a), marks.of(b)
    if isinstance(run.scopes.now.module, nn.Linear) and left.weight == right.weight:
        left, right = Mark(network_input=left.network_input), Mark(weight=True, name=right.name)
    if left.weight and right.weight and left.constant != right.constant:
        state = a if left.constant else b
        assert run.current is not None
        if state.shape[0] == run.current.B or not state.any():  # a recurrence's first state; the next is an activation
            left, right = (Mark(), right) if left.constant else (left, Mark())
    if left.weight and right.weight:
        return finish_marks(run, func, args, kwargs, func(*args, **kwargs), made(run, args, kwargs))
    consumed([(x, m) for x, m in ((a, left), (b, right)) if not m.weight])
    result = func(*args, **kwargs)
    with run.paused():
        if right.weight:
            has_bias = bias is not None and marks.of(bias).weight
            site = count_linear(run, a, left, b, right, has_bias)
        elif left.weight:
            site = count_linear(run, b.transpose(-1, -2), right, a.transpose(-1, -2), left, bias is not None)
        else:
            site = count_pair(run, place_name(run, "matmul"), a, left, b, right)
    return finish_marks(run, func, args, kwargs, result, Mark(origin=Origin(site)))


def count_linear(
    run: Run, x: Tensor, mark: Mark, weight: Tensor, role: Mark, bias: bool, name: str | None = None
) -> Site:
    """Count x [.., k] through weights [k, n] or [L, k, n]."""
    k, n = weight.shape[-2:]
    site = run.site(name or param_name(run, role, "linear"), "linear")
    flat = x if x.dim() == 2 else x.reshape(-1, k)
    inner = run.scopes.now.inner
    if inner is not None and flat.shape[0] % inner == 0:  # rows are [L, samples]: the samples come first in the counts
        flat = flat.reshape(-1, inner, k).transpose(0, 1)
    rows = rows_of(run, flat.shape[0])
    events, levels = level_tally(run, site, "a", flat, mark, rows)
    check_static(run, site, [flat], rows)
    counts = {"sop": events, "events": events}
    factors = {"sop": n, "levels.a": n}
    nonzero = _nonzero_rows(weight, role)
    if nonzero is not None:
        counts["sop_nz"], factors["sop_nz"] = _pruned_sum(flat, weight, nonzero, rows), 1
    elements = flat.numel() // rows.count
    outputs = elements // k * n
    add_call(
        site,
        rows,
        counts,
        factors=factors,
        levels={"a": levels},
        dense={
            "dense_exact": elements * n,
            "dense_nominal": elements * n,
            "in_numel": elements,
            "out_numel": outputs,
            "bias_adds": outputs if bias or _module_bias(run) else 0,
        },
    )
    site.facts["operands"] = "param"
    matrix = weight.numel() if weight.dim() == 2 else k * n
    site.geometry = Geometry(
        in_channels=k, out_channels=n, weights=matrix, biases=n if bias or _module_bias(run) else 0
    )
    return site


def _module_bias(run: Run) -> bool:
    module = run.scopes.now.module
    return isinstance(module, nn.Linear) and module.bias is not None


def _nonzero_rows(weight: Tensor, role: Mark) -> Tensor | None:
    """Non-zero weights per input [.., k], or None if no weight is zero; remembered until the weight changes."""
    if weight.dim() == 3 and (weight.shape[0] == 1 or weight.stride(0) == 0):
        weight = weight[0]
    key = ("nonzero", weight.shape, weight.stride(), weight.storage_offset(), _version(weight))
    if key not in role.memo:
        role.memo.clear()
        role.memo[key] = None if all_present(weight) else (weight != 0).sum(-1, dtype=torch.int32)
    nonzero: Tensor | None = role.memo[key]
    return nonzero


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version


def _pruned_sum(flat: Tensor, weight: Tensor, nonzero: Tensor, rows: Rows) -> Tensor:
    """Terms with a non-zero weight per row."""
    k = flat.shape[-1]
    if nonzero.dim() == 1:
        laid = flat.contiguous()
        pruned = tally(laid, laid.numel() // rows.count // k, k, pruned=nonzero.contiguous()).pruned
        assert pruned is not None
        return pruned
    present = (flat.reshape(weight.shape[0], -1, k) != 0).sum(1) * nonzero
    return present.sum(1).reshape(rows.count, -1).sum(1)


def count_pair(run: Run, name: str, a: Tensor, left: Mark, b: Tensor, right: Mark) -> Site:
    """Count activations on activations, [.., m, k] @ [.., k, n]: terms with both, the first, the second non-zero."""
    site = run.site(name, "matmul")
    a, b = (x.reshape(-1, *x.shape[-2:]) if x.dim() != 3 else x for x in (a, b))
    m, k = a.shape[1:]
    n = b.shape[2]
    rows = rows_of(run, a.shape[0])
    of_a, levels_a = level_tally(run, site, "a", a, left, rows)
    of_b, levels_b = level_tally(run, site, "b", b, right, rows)
    check_static(run, site, [a, b], rows)
    both = (_nonzero(a, 1, levels_a) * _nonzero(b, 2, levels_b)).sum(1).reshape(rows.count, -1).sum(1)
    products = a.shape[0] // rows.count
    add_call(
        site,
        rows,
        {"sop": both, "sop_a": of_a, "sop_b": of_b, "events": of_a, "events_b": of_b},
        factors={"sop_a": n, "sop_b": m},
        levels={"a": levels_a, "b": levels_b},
        dense={
            "dense_exact": products * m * k * n,
            "dense_nominal": products * m * k * n,
            "in_numel": products * m * k,
            "in_numel_b": products * k * n,
            "out_numel": products * m * n,
            "bias_adds": 0,
        },
    )
    site.facts["operands"] = "activation"
    site.geometry = Geometry(in_channels=k, out_channels=n)
    return site


@rule("_trilinear")
def bilinear_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """x1 [N, m], weight [n, m, k], x2 [N, k]: terms m k n per row, a SOP where both activations are non-zero."""
    x1, weight, x2 = args[:3]
    left, right = run.marks.of(x1), run.marks.of(x2)
    if not run.marks.of(weight).weight or x1.dim() != 2 or x2.dim() != 2:
        return unknown(run, func, args, kwargs)
    consumed([(x1, left), (x2, right)])
    result = func(*args, **kwargs)
    n, m, k = weight.shape
    with run.paused(), torch.no_grad():
        site = run.site(param_name(run, run.marks.of(weight), "bilinear"), "bilinear")
        rows = rows_of(run, x1.shape[0])
        of_a, levels_a = level_tally(run, site, "a", x1, left, rows)
        of_b, levels_b = level_tally(run, site, "b", x2, right, rows)
        check_static(run, site, [x1, x2], rows)
        both = (torch.count_nonzero(x1, 1) * torch.count_nonzero(x2, 1)).reshape(rows.count, -1).sum(1)
        lines = x1.shape[0] // rows.count
        numbers: dict[str, float] = dict.fromkeys(("dense_exact", "dense_nominal"), lines * m * k * n)
        numbers |= {"in_numel": lines * m, "in_numel_b": lines * k, "out_numel": lines * n, "bias_adds": 0}
        add_call(
            site,
            rows,
            {"sop": both, "sop_a": of_a, "sop_b": of_b, "events": of_a, "events_b": of_b},
            factors={"sop": n, "sop_a": k * n, "sop_b": m * n},
            levels={"a": levels_a, "b": levels_b},
            dense=numbers,
        )
        site.facts["operands"] = "activation"
        site.geometry = Geometry(in_channels=m, out_channels=n, weights=weight.numel())
    return finish_marks(run, func, args, kwargs, result, Mark(origin=Origin(site)))


def _nonzero(x: Tensor, dim: int, levels: Levels) -> Tensor:
    """Non-zero elements along an axis, int64."""
    flags = levels.table.flags
    if not x.is_cuda and not flags[BEYOND_ONE] and not flags[NON_FINITE] and x.shape[dim] < 2**24:
        return x.sum(dim, dtype=torch.float32).long()  # zeros and ones
    if x.shape[dim] >= 2**24:
        return torch.count_nonzero(x, dim=dim)
    ones = torch.empty(x.shape, dtype=torch.float32, device=x.device)  # exact up to 2^24, and faster than counting
    return torch.ne(x, 0, out=ones).sum(dim).long()


# --- convolutions -------------------------------------------------------------------------------------------------


@rule("convolution", "_convolution")
def convolution_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """x [N, C_in, *size], weight [C_out, C_in / groups, *kernel], or transposed [C_in, C_out / groups, *kernel]."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    given = dict(zip(names, args, strict=False)) | {n: v for n, v in kwargs.items() if n in names}
    x, weight = given["input"], given["weight"]
    mark, role = run.marks.of(x), run.marks.of(weight)
    if mark.weight and role.weight and not isinstance(run.scopes.now.module, nn.modules.conv._ConvNd):
        return finish_marks(run, func, args, kwargs, func(*args, **kwargs), made(run, args, kwargs))
    consumed([(x, mark)])
    result = func(*args, **kwargs)
    with run.paused():
        site = _count_convolution(run, given, mark, role, tuple(result.shape[2:]))
    return finish_marks(run, func, args, kwargs, result, Mark(origin=Origin(site)))


def _space(given: dict[str, Any], mark: Mark, out: tuple[int, ...]) -> Space:
    x, weight = given["input"], given["weight"]
    dims = x.dim() - 2
    stride, pad, dilation = (spread(given[key], dims) for key in ("stride", "padding", "dilation"))
    table = transposed_table if given["transposed"] else conv_table
    tables = tuple(
        table(x.shape[2 + d], weight.shape[2 + d], stride[d], pad[d], dilation[d], out[d]) for d in range(dims)
    )
    zeros = ((0, 0),) * dims
    pads = (zeros + mark.padding)[-dims:] if mark.padding else zeros
    return Space(tables, tuple(live(x.shape[2 + d], pads[d]) for d in range(dims)))


def _count_convolution(run: Run, given: dict[str, Any], mark: Mark, role: Mark, out: tuple[int, ...]) -> Site:
    x, weight, groups = given["input"], given["weight"], given["groups"]
    channels, transposed = x.shape[1], given["transposed"]
    out_channels = weight.shape[1] * groups if transposed else weight.shape[0]
    op = f"conv{'_transpose' if transposed else ''}{x.dim() - 2}d"
    site = run.site(param_name(run, role, op), op)
    rows = rows_of(run, x.shape[0])
    images = x.shape[0] // rows.count
    space = _space(given, mark, out)
    fan_out = out_channels // groups
    counts, factors, levels = _count_fan(site, x, mark, rows, space, run)
    factors = dict.fromkeys(factors, fan_out)
    taps = _taps(weight, role, groups, transposed)
    if taps is not None:
        counts["sop_nz"] = _pruned_taps(site, x, rows, space, taps)
    check_static(run, site, [x], rows)
    taps_per_output = math.prod(weight.shape[2:])
    inputs, outputs = images * channels * space.numel(), images * out_channels * math.prod(out)
    nominal = inputs * fan_out if transposed else outputs * (channels // groups)
    bias = given.get("bias") is not None
    add_call(
        site,
        rows,
        counts,
        factors=factors,
        levels=levels,
        dense={
            "dense_exact": images * channels * fan_out * space.dense(),
            "dense_nominal": nominal * taps_per_output,
            "in_numel": inputs,
            "out_numel": outputs,
            "bias_adds": outputs if bias else 0,
        },
    )
    site.facts["operands"] = "param"
    dims = x.dim() - 2
    site.geometry = Geometry(
        tuple(weight.shape[2:]),
        spread(given["stride"], dims),
        groups,
        channels,
        out_channels,
        weight.numel(),
        out_channels if bias else 0,
        transposed,
    )
    return site


def _count_fan(site: Site, x: Tensor, mark: Mark, rows: Rows, space: Space, run: Run) -> Any:
    """Events, taps met per row, and the same by value; names of what is still to be multiplied by outputs per group."""
    fan = space.fan()
    if (fan == 1).all():
        events, only = level_tally(run, site, "a", x, mark, rows)
        return {"sop": events, "events": events}, ("sop", "levels.a"), {"a": only}
    laid, outer, inner, last = _channel_layout(x, rows)
    key = (fan.tobytes(), last, outer if last else inner)
    weights = on_device(site, "fan", key, lambda: np.tile(fan, outer // len(fan)) if last else fan, x)
    table = table_of(site, "a", x.device)
    counted = tally(laid, outer, inner, table=table, fan=weights, fan_on="outer" if last else "inner")
    levels = {"a": levels_of(counted, table, x, mark, rows)}
    if (fan == 0).any():  # values that a stride skips count for the kind all the same
        levels["a+"] = level_tally(run, site, "a+", x, mark, rows)[1]
    return {"sop": counted.terms, "events": counted.events}, ("sop", "levels.a"), levels


def _channel_layout(x: Tensor, rows: Rows) -> tuple[Tensor, int, int, bool]:
    """x in memory order with the sizes of a row's outer and inner axis; True: channels are the inner one."""
    size = math.prod(x.shape[2:])
    images = x.shape[0] // rows.count
    last = x.permute(0, *range(2, x.dim()), 1)
    if not x.is_contiguous() and last.is_contiguous():
        return last, images * size, x.shape[1], True
    return x.contiguous(), images * x.shape[1], size, False


def _taps(weight: Tensor, role: Mark, groups: int, transposed: bool) -> Any:
    """Non-zero weights of every input channel and tap, or None if no weight is zero."""
    key = ("taps", weight.shape, weight.stride(), weight.storage_offset(), _version(weight), groups, transposed)
    if key not in role.memo:
        role.memo.clear()
        role.memo[key] = None if all_present(weight) else nonzero_per_input(weight, groups, transposed)
    return role.memo[key]


def _pruned_taps(site: Site, x: Tensor, rows: Rows, space: Space, taps: NDArray[np.int64]) -> Tensor:
    """Terms with a non-zero weight per row."""
    laid, outer, inner, last = _channel_layout(x, rows)
    images = x.shape[0] // rows.count

    def pattern() -> NDArray[np.int32]:
        weights = space.weighted(taps)  # [C, positions]
        return np.tile((weights.T if last else weights).reshape(-1), images).astype(np.int32)

    key = (taps.tobytes(), tuple(table.tobytes() for table in space.tables), last, images)
    pruned = tally(laid, outer, inner, pruned=on_device(site, "pruned", key, pattern, x)).pruned
    assert pruned is not None
    return pruned
