"""How the input of a network is read as time steps and samples, and whether its layers read it so, too."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from spikeloom.energy.rows import Batch

_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def read_batch(args: Sequence[object], T: int | None, axes: str, said: tuple[int, int | None] | None) -> Batch:
    """The batch that a call of the network with `args` is.

    Args:
        args: of the call; the first tensor counts.
        T: as given to `count`; None: the input's first two axes are time and samples, in the order of `axes`.
        said: time steps of a batch that was opened by `run.batch(T=...)`.

    Raises:
        ValueError: no tensor, an empty one, or one with a single axis.
    """
    x = next((a for a in args if isinstance(a, Tensor)), None)
    if x is None:
        raise ValueError("the model was called without a tensor; mark its batches with `with run.batch(T=, B=):`")
    shape = tuple(x.shape)
    if x.numel() == 0:
        raise ValueError(f"the model was called with an empty tensor, shape {list(shape)}; nothing can be counted")
    if said is not None:
        return Batch(said[0], shape[0], axes, 1)
    if T is not None:
        return Batch(T, shape[0], axes, T)
    if len(shape) < 2:
        raise ValueError(
            f"the model was called with a tensor of shape {list(shape)}; expected [T, B, ...]. For a network "
            "that loops over time itself give count(model, T=...)"
        )
    T, B = shape[axes.index("T")], shape[axes.index("B")]
    return Batch(T, B, axes, T, shape, x.data_ptr(), x.stride(0))


def check_axes(module: nn.Module, args: Sequence[object], batch: Batch) -> None:
    """Refuse a batch of images [B, C, H, W], or of vectors [B, F], that was taken for B steps of C (F) samples.

    A layer of torch that gets the network's own input and sums over its second axis shows that this axis holds no
    samples. With axes="BT" that axis is time, and a layer may sum over time.

    Raises:
        ValueError: such a layer.
    """
    x = next((a for a in args if isinstance(a, Tensor)), None)
    if x is None or batch.order != "TB" or not _sums_samples(module, tuple(x.shape), batch.network):
        return
    if x.data_ptr() != batch.place or not batch.place or x.stride(0) != batch.stride:
        return  # of the same shape by chance, or with samples in front where T = B
    one = f", `with run.batch(T={batch.T}, B=1):` around the call for the steps of one sample" if batch.B == 1 else ""
    raise ValueError(
        f"the input {list(batch.network)} was taken for T = {batch.T} time steps of B = {batch.B} samples, but "
        f"{type(module).__name__} adds up its second axis: these are {batch.network[0]} samples without a time axis. "
        "Give the number of steps: count(model, T=1) for an ANN, count(model, T=...) for a network that repeats its "
        f"input, `with run.batch(T=...):` around a loop over time{one}"
    )


def _sums_samples(module: nn.Module, shape: tuple[int, ...], network: tuple[int, ...]) -> bool:
    """Whether a layer sums over the second axis of the network's input; subclasses may know of time: not asked."""
    kind = type(module)
    if isinstance(module, nn.Flatten) and kind is nn.Flatten:
        return shape == network and len(shape) > 2 and module.start_dim == 1
    if kind in _CONVOLUTIONS:
        return shape == network and len(shape) == _CONVOLUTIONS[kind] + 2
    if kind is nn.Linear:
        return network[1] > 1 and shape == (network[0], math.prod(network[1:]))  # as it came, or flattened
    return False
