"""Which modules and functions of an ANN keep their meaning step by step: linear ones, and ones that move data.

The mean over time of their outputs is their output of the mean. Whatever is not in these tables is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that take in a batch normalisation behind them, and a scale in front."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MOVES = (nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.Upsample, nn.PixelShuffle, nn.ChannelShuffle)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KEPT = (*WEIGHTED, *AVERAGES, *MOVES, *TRANSPOSED)
"""Modules that are copied as they are."""
DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
"""Modules that do nothing in evaluation."""

CALLS: Mapping[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "number_add": operator.add,
    "number_sub": operator.sub,
    "number_mul": operator.mul,
    "number_div": operator.truediv,
    "number_floordiv": operator.floordiv,
    "getitem": operator.getitem,
    "size": lambda x, dim=None: tuple(x.shape) if dim is None else x.shape[dim],
    "cat": torch.cat,
    "stack": torch.stack,
    "flatten": torch.flatten,
    "reshape": lambda x, *sizes, **named: x.reshape(*sizes, **named),
    "view": lambda x, *sizes: x.reshape(*sizes),  # a view of the ANN's layout may be none of ours
    "permute": lambda x, *dims, **named: x.permute(*dims, **named),
    "transpose": torch.transpose,
    "unsqueeze": torch.unsqueeze,
    "squeeze": torch.squeeze,
    "chunk": torch.chunk,
    "split": torch.split,
    "contiguous": lambda x, **layout: x.contiguous(),  # the layout in memory changes no value
    "mean": torch.mean,
    "sum": torch.sum,
    "pad": F.pad,
    "avg_pool1d": F.avg_pool1d,
    "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool1d": F.adaptive_avg_pool1d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "interpolate": F.interpolate,
}
"""Name -> function."""

FUNCTIONS: Mapping[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.sub: "sub",
    operator.isub: "sub",
    torch.sub: "sub",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.mul: "mul",
    operator.truediv: "div",
    operator.itruediv: "div",
    torch.div: "div",
    operator.neg: "neg",
    torch.neg: "neg",
    operator.getitem: "getitem",
    operator.floordiv: "floordiv",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.stack: "stack",
    torch.flatten: "flatten",
    torch.reshape: "reshape",
    torch.permute: "permute",
    torch.transpose: "transpose",
    torch.unsqueeze: "unsqueeze",
    torch.squeeze: "squeeze",
    torch.chunk: "chunk",
    torch.split: "split",
    torch.mean: "mean",
    torch.sum: "sum",
    F.pad: "pad",
    F.avg_pool1d: "avg_pool1d",
    F.avg_pool2d: "avg_pool2d",
    F.adaptive_avg_pool1d: "adaptive_avg_pool1d",
    F.adaptive_avg_pool2d: "adaptive_avg_pool2d",
    F.interpolate: "interpolate",
}
"""What a trace names -> the name in CALLS."""

METHODS: Mapping[str, str] = {
    name: name
    for name in [
        "add",
        "sub",
        "mul",
        "div",
        "neg",
        "flatten",
        "reshape",
        "view",
        "permute",
        "transpose",
        "unsqueeze",
        "squeeze",
        "chunk",
        "split",
        "contiguous",
        "mean",
        "sum",
        "size",
    ]
} | {"add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div"}
"""Method of a tensor -> the name in CALLS."""

MAX_POOLS: Mapping[Any, type[nn.Module]] = {
    F.max_pool1d: nn.MaxPool1d,
    torch.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
}
"""Function -> the same as a module; its arguments after the input are the module's."""

PRODUCTS = ("mul", "div")
ADVICE: Mapping[str, str] = {
    "sigmoid": "a squeeze-and-excitation gate or sigmoid has no spiking form here; train the network without it",
    "gelu": "train it with ReLU or spikeloom.conversion.QCFS in the place of GELU",
    "silu": "train it with ReLU or spikeloom.conversion.QCFS in the place of SiLU",
    "hardswish": "train it with ReLU or ReLU6 in the place of Hardswish",
    "softmax": "return the logits; a softmax at the end changes no decision, attention has no spiking form here",
    "layernorm": "its statistics are those of each input; train it with BatchNorm",
    "groupnorm": "its statistics are those of each input; train it with BatchNorm",
    "leakyrelu": "spikes cannot be negative; train it with ReLU",
    "tanh": "spikes cannot be negative; train it with ReLU",
    "elu": "spikes cannot be negative; train it with ReLU",
    "lstm": "recurrent layers do not convert",
    "gru": "recurrent layers do not convert",
    "conv1d": "write it as a module, nn.Conv1d",
    "conv2d": "write it as a module, nn.Conv2d",
    "conv3d": "write it as a module, nn.Conv3d",
    "maxpool": "write it as nn.MaxPool2d (or 1d, 3d) with a fixed window, without indices",
    "linear": "write it as a module, nn.Linear",
    "batchnorm": "write it as a module, nn.BatchNorm2d",
}
"""A part of a name in lower case -> what to do."""
REMEDY = "use ReLU, ReLU6, Hardtanh(0, m), clamp(0, c), QCFS, ClippedReLU or QuantisedReLU, and linear layers"


def advice(name: str) -> str:
    """What to do about an operation that does not convert."""
    plain = name.lower().replace("_", "")
    if plain.startswith(("hardtanh", "clamp")):  # with other bounds
        return REMEDY
    found = [text for part, text in ADVICE.items() if part in plain]
    return found[0] if found else REMEDY
