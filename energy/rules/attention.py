"""Scaled dot-product attention: two products, whichever fused kernel would run.

The probabilities are computed the plain way, so that masked and underflowed entries are zeros of the second product, as
in attention written by hand; Q K^T is charged in full under a mask too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spikeloom.energy.marks import Mark
from spikeloom.energy.meter import FUNCTIONS, consumed, rule
from spikeloom.energy.rules.elementwise import lead_rows
from spikeloom.energy.rules.linear import count_pair
from spikeloom.energy.rules.measure import add_call, level_tally, place_name

if TYPE_CHECKING:
    from spikeloom.energy.run import Run

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _by_function(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.nn.functional.scaled_dot_product_attention`."""
    return _attend(run, func, args, kwargs, dict(zip(_NAMES, args, strict=False)) | kwargs)


FUNCTIONS[torch.nn.functional.scaled_dot_product_attention] = _by_function
FUNCTIONS[torch._C._nn.scaled_dot_product_attention] = _by_function


@rule(
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_fused_attention_overrideable",
)
def _by_operator(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    given["attn_mask"] = given.get("attn_mask", given.get("attn_bias"))
    return _attend(run, func, args, kwargs, given)


def _attend(run: Run, func: Any, args: Any, kwargs: Any, given: dict[str, Any]) -> Any:
    q, k, v = given["query"], given["key"], given["value"]
    marks = [run.marks.of(x) for x in (q, k, v)]
    consumed(list(zip((q, k, v), marks, strict=True)))
    with run.paused():
        result = func(*args, **kwargs)
        with torch.no_grad():
            _count(run, given, marks)
    run.mark_outputs(result)
    return result


def _count(run: Run, given: dict[str, Any], marks: list[Mark]) -> None:
    q, k, v = (given[name].detach() for name in _NAMES[:3])
    if q.dim() > 3 and k.shape[-3] != q.shape[-3]:  # grouped queries: a head of K and V serves several of Q
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        marks = [marks[0], marks[1].copied(), marks[2].copied()]
    lead = torch.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
    q, k, v = (x.expand(*lead, *x.shape[-2:]) for x in (q, k, v))
    keys = k.transpose(-1, -2)
    base = place_name(run, "attention")
    count_pair(run, f"{base}.qk", q, marks[0], keys, marks[1])
    probabilities = _probabilities(q, keys, given)
    rows = lead_rows(run, probabilities)
    for name, op in ((f"{base}.scale", "scale"), (f"{base}.softmax", "softmax")):
        site = run.site(name, op)
        site.facts["aux"] = True
        _, levels = level_tally(run, site, "out", probabilities, Mark(), rows)
        add_call(site, rows, {}, levels={"out": levels}, dense={"numel": probabilities.numel() // rows.count})
    count_pair(run, f"{base}.av", probabilities, Mark(), v, marks[2])


def _probabilities(q: Tensor, keys: Tensor, given: dict[str, Any]) -> Tensor:
    scale = given.get("scale")
    scores = torch.matmul(q, keys) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1).nan_to_num(0.0)  # a row that is masked as a whole attends to nothing
