"""Operations between linear ones: additions, products, maps, sums, normalisations, pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeloom.energy.marks import Mark
from spikeloom.energy.meter import FUNCTIONS, activations, consumed, finish_marks, made, rule, tensors_of
from spikeloom.energy.rows import Rows
from spikeloom.energy.rules.measure import (
    add_call,
    level_tally,
    on_device,
    pair_events,
    place_name,
    rows_of,
    separate_events,
)
from spikeloom.energy.sites import Site
from spikeloom.energy.terms import Space, adaptive_table, conv_table, live, spread
from spikeloom.kernels.tally import tally

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


def lead_rows(run: Run, x: Tensor) -> Rows:
    """The arrangement of a tensor whose first axes are [T, B], [T B] or [B]."""
    return shape_rows(run, x.shape)


def shape_rows(run: Run, shape: Sequence[int]) -> Rows:
    """The same by shape."""
    batch = run.current
    assert batch is not None
    if (order := batch.order_of(shape)) is not None and run.scopes.now.lead != "step":
        return batch.rows(order)
    if len(shape) >= 2 and shape[0] == 1 and shape[1] == batch.B:  # a single step that kept its axis
        return Rows("step", batch.B)
    return rows_of(run, shape[0] if shape else 1)


@rule("add", "add_", "sub", "sub_", "rsub")
def add_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Residual connections: an addition happens where both operands are non-zero. A weight added is a bias or a map."""
    found = activations(run, args, kwargs)
    if run.scopes.now.quiet:
        return pointwise_rule(run, func, args, kwargs)
    tensors = tensors_of(args)
    if len(found) == 1 and len(tensors) == 2 and found[0][1].origin is not None:
        x, mark = found[0]
        other = tensors[1] if tensors[0] is x else tensors[0]
        site = mark.origin.site if mark.origin is not None else None
        if site is not None and other.dim() == 1 and other.numel() in (site.geometry.out_channels, x.shape[-1]):
            return _late_bias(run, site, func, args, kwargs, mark)
    if len(found) == 2 and found[0][0] is not found[1][0]:
        return _pair(run, "add", func, args, kwargs, found)
    return pointwise_rule(run, func, args, kwargs)


@rule("mul", "mul_")
def mul_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Masks and gates between two activations; a product with a number or a weight is a scale."""
    found = activations(run, args, kwargs)
    if len(found) == 2 and not run.scopes.now.quiet:
        return _pair(run, "mul", func, args, kwargs, found)
    return pointwise_rule(run, func, args, kwargs)


def _late_bias(run: Run, site: Site, func: Any, args: Any, kwargs: Any, mark: Mark) -> Any:
    """torch adds a linear layer's bias in an operation of its own for some memory layouts."""
    for call in site.open[-1:]:
        call.dense["bias_adds"] = call.dense["out_numel"]
    site.geometry.biases = site.geometry.out_channels
    result = func(*args, **kwargs)
    origin = mark.origin
    return finish_marks(run, func, args, kwargs, result, Mark(origin=origin))


def _pair(run: Run, op: str, func: Any, args: Any, kwargs: Any, found: list[tuple[Tensor, Mark]]) -> Any:
    consumed(found)
    shape = torch.broadcast_shapes(*(x.shape for x, _ in found))
    with run.paused(), torch.no_grad():
        site = run.site(place_name(run, op), op)
        rows = shape_rows(run, shape)
        plain_sum = func._schema.name.startswith("aten::add") and kwargs.get("alpha", 1) == 1
        parts = separate_events(run, site, found, rows) if plain_sum else None
        both, either = (None, None) if parts is not None else pair_events(run, site, found, rows)
    result = func(*args, **kwargs)
    finish_marks(run, func, args, kwargs, result, Mark())
    events = _leave(run, site, rows, {}, result, {"numel": math.prod(shape) // rows.count})
    if parts is not None:  # no sum of these cancels, so the result is non-zero where any of them is
        both, either = parts[0] + parts[1] - events, events
    assert both is not None
    assert either is not None
    site.open[-1].counts |= {"both": both, "any": either}
    return result


def _leave(
    run: Run, site: Site, rows: Rows, counts: dict[str, Tensor], result: Tensor, dense: dict[str, float]
) -> Tensor:
    """Leave a call with the values of the result; returns the result's events [rows]."""
    with run.paused(), torch.no_grad():
        events, levels = level_tally(run, site, "out", result, run.marks.of(result), lead_rows(run, result))
        add_call(site, rows, counts, levels={"out": levels}, dense=dict(dense))
    site.facts["aux"] = True
    return events


@rule(
    "pointwise", "div", "div_", "native_dropout", "_softmax", "_log_softmax", "native_layer_norm", "native_group_norm"
)
@rule("glu", "logsumexp", "norm", "linalg_vector_norm", "var", "std", "var_mean", "prod", "cumsum", "_safe_softmax")
@rule("_weight_norm_interface", "_fused_rms_norm", "cumprod", "_masked_softmax", "prelu", "_prelu_kernel", "celu")
def pointwise_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """A map over activations is listed with its elements; between weights it makes a weight."""
    found = activations(run, args, kwargs)
    result = func(*args, **kwargs)
    if not found:
        weight = next((run.marks.of(t) for t in tensors_of(args)), None)
        return finish_marks(run, func, args, kwargs, result, made(run, args, kwargs, weight.name if weight else None))
    consumed(found)
    first = result[0] if isinstance(result, list | tuple) else result
    expanded = func._schema.name == "aten::mul" and first.numel() > found[0][0].numel()
    finish_marks(run, func, args, kwargs, result, Mark(expanded=expanded))
    if run.scopes.now.quiet or not first.is_floating_point():
        return result
    name = func._schema.name.removeprefix("aten::").strip("_")
    op = {"mul": "scale", "div": "scale", "native_layer_norm": "layer_norm", "native_dropout": "dropout"}.get(
        name, name
    )
    with run.paused():
        site = run.site(place_name(run, op), op)
    rows = lead_rows(run, first)
    _leave(run, site, rows, {}, first, {"numel": first.numel() // rows.count})
    return result


@rule("sum", "mean", "nansum")
def sum_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """A sum over spikes is one accumulate per event; a mean's division folds."""
    found = activations(run, args, kwargs)
    if not found or run.scopes.now.quiet:
        return pointwise_rule(run, func, args, kwargs)
    consumed(found)
    x, mark = found[0]
    if mark.expanded:
        run.unknown("aten::mul, aten::sum (a matrix product written by hand)", [x])
    with run.paused():
        site = run.site(place_name(run, "sum"), "sum")
        rows = lead_rows(run, x)
        events, _ = level_tally(run, site, "in", x, mark, rows)
    result = func(*args, **kwargs)
    finish_marks(run, func, args, kwargs, result, Mark())
    _leave(run, site, rows, {"events": events}, result, {"numel": x.numel() // rows.count})
    return result


# --- batch normalisation ------------------------------------------------------------------------------------------


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm", "_native_batch_norm_legit_functional")
def norm_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Folds into the linear operation in front if nothing else reads that one's output."""
    x = args[0]
    mark = run.marks.of(x)
    result = func(*args, **kwargs)
    consumed([(x, mark)])
    run.mark_outputs(result)
    with run.paused():
        count_norm(run, x, mark)
    return result


def count_norm(run: Run, x: Tensor, mark: Mark, name: str | None = None) -> None:
    """Note a batch normalisation of x; whether it folds is known when the pass ends."""
    site = run.site(name or place_name(run, "batch_norm"), "batchnorm")
    rows = lead_rows(run, x)
    if rows.lead == "step" and _all_steps(x, mark):  # of one sample, [1, rows, C] looks like a single step
        rows = Rows("whole", 1)
    add_call(site, rows, {}, dense={"elements": x.numel() // rows.count})
    site.facts.setdefault("origins", []).append(mark.origin)
    site.facts["aux"] = True


def _all_steps(x: Tensor, mark: Mark) -> bool:
    """Is x all that a linear operation wrote, in a call for all steps?"""
    calls = [] if mark.origin is None else mark.origin.site.open[-1:]
    return any(c.rows.lead == "multi" and c.dense["out_numel"] * c.rows.count == x.numel() for c in calls)


# --- pools --------------------------------------------------------------------------------------------------------


@rule(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "max_pool1d", "mkldnn_max_pool2d", "max_pool3d"
)
@rule("avg_pool2d", "avg_pool3d", "avg_pool1d")
def pool_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Pools with kernel, stride, padding."""
    names = [a.name for a in func._schema.arguments]
    given = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    given |= dict(zip(names, args, strict=False)) | kwargs
    x: Tensor = given["self"]
    result = func(*args, **kwargs)
    out = result[0] if isinstance(result, tuple) else result
    kernel = given["kernel_size"]
    dims = out.dim() - (2 if x.dim() == out.dim() and out.dim() > 2 else 1)
    dims = min(dims, 1 if "1d" in func._schema.name else 2 if "2d" in func._schema.name else 3)
    kernel = spread(kernel, dims)
    stride = spread(given.get("stride") or kernel, dims)
    pads = spread(given.get("padding", 0), dims)
    dilation = spread(given.get("dilation", 1), dims)
    sizes = x.shape[x.dim() - dims :]
    tables = tuple(
        conv_table(sizes[d], kernel[d], stride[d], pads[d], dilation[d], out.shape[out.dim() - dims + d])
        for d in range(dims)
    )
    op = f"{'avg' if 'avg' in func._schema.name else 'max'}_pool{dims}d"
    return _pool(run, op, func, args, kwargs, x, result, tables)


@rule(
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "adaptive_max_pool1d"
)
@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mkldnn_adaptive_avg_pool2d")
def adaptive_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Adaptive pools, by their real windows."""
    with run.paused():
        result = func(*args, **kwargs)
    x = args[0] if args else kwargs["input"]
    out = result[0] if isinstance(result, tuple) else result
    name = getattr(func, "_schema", None).name if hasattr(func, "_schema") else func.__name__  # type: ignore[union-attr]
    dims = int(name[name.rindex("pool") + 4])
    tables = tuple(adaptive_table(x.shape[d], out.shape[d]) for d in range(-dims, 0))
    op = f"{'avg' if 'avg' in name else 'max'}_pool{dims}d"
    return _pool(run, op, func, args, kwargs, x, result, tables)


for _function in (
    nn.functional.adaptive_avg_pool2d,
    nn.functional.adaptive_avg_pool3d,
    torch._C._nn.adaptive_avg_pool2d,
    torch._C._nn.adaptive_avg_pool3d,
    torch.adaptive_avg_pool1d,
):
    FUNCTIONS[_function] = adaptive_rule


def _pool(run: Run, op: str, func: Any, args: Any, kwargs: Any, x: Tensor, result: Any, tables: Any) -> Any:
    mark = run.marks.of(x)
    consumed([(x, mark)])
    out = result[0] if isinstance(result, tuple) else result
    run.mark_outputs(result)
    space = Space(tables, tuple(live(len(table)) for table in tables))
    with run.paused():
        site = run.site(place_name(run, op), op)
        rows = lead_rows(run, x)
        inner = math.prod(x.shape[x.dim() - len(tables) :])
        laid = x.contiguous()
        fan = on_device(site, "fan", tuple(t.tobytes() for t in tables), space.fan, x)
        counted = tally(laid, laid.numel() // rows.count // inner, inner, fan=fan)
    dense = {
        "dense": laid.numel() // inner // rows.count * space.dense(),
        "out_numel": out.numel() // rows.count,
    }
    _leave(run, site, rows, {"incidences": counted.terms}, out, dense)
    return result
