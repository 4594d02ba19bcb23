"""The loom: one-time-step functions woven into fused multi-timestep kernels for CPU and GPU."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.kernels", name=__name__)

from spikeloom.kernels.declare import Step, step
from spikeloom.kernels.lang import (
    absolute,
    clamp,
    detach,
    exp,
    floor,
    log,
    maximum,
    minimum,
    round,
    sigmoid,
    sqrt,
    tanh,
    where,
)
from spikeloom.kernels.surrogate import SURROGATES, spike
from spikeloom.kernels.weaving import weave

__all__ = [
    "SURROGATES",
    "Step",
    "absolute",
    "clamp",
    "detach",
    "exp",
    "floor",
    "log",
    "maximum",
    "minimum",
    "round",
    "sigmoid",
    "spike",
    "sqrt",
    "step",
    "tanh",
    "weave",
    "where",
]
