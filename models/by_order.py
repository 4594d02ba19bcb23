"""Checkpoints whose entries have other names than the published code gives them: matched by order, shape by shape.

The evaluation script of some papers copies entry i of a file to entry i of the network and leaves out what does not
fit. Here the number of entries and every shape must agree, or an error names the first that does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor

Entries = dict[str, tuple[int, ...]]
"""The entries of an official state dict in its order: names and shapes."""


def of_conv(name: str, out_channels: int, in_channels: int, *kernel: int, bias: bool = False) -> Entries:
    """The entries of a convolution or linear map."""
    found: Entries = {f"{name}.weight": (out_channels, in_channels, *kernel)}
    return {**found, f"{name}.bias": (out_channels,)} if bias else found


def of_norm(name: str, channels: int) -> Entries:
    """The entries of a batch normalisation."""
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{entry}": (channels,) for entry in vectors}, f"{name}.num_batches_tracked": ()}


def named(
    state: dict[str, Tensor], expected: Entries | None, layouts: Mapping[str, Entries], family: str
) -> str | None:
    """Give the entries of a state dict their official names, in place, if they come by order.

    Args:
        state: official or other names -> tensors.
        expected: the entries of the network that the names describe, None if they describe none. If the names are
            those, they count, and nothing is changed; so too if most are and the order fits no layout.
        layouts: the networks that the order may be of, by any name.

    Returns:
        The name of the layout that was taken, None if the names count. A warning says when the order is used.

    Raises:
        ValueError: neither the names nor the order fit; the message has the first entry that differs.
    """
    if expected is not None and state.keys() == expected.keys():
        return None
    tensors = list(state.values())
    for name, layout in layouts.items():
        if len(layout) == len(tensors) and difference(state, layout) is None:
            warnings.warn(
                f"All {len(tensors)} entries of the {family} checkpoint were matched by their order and shape: their "
                f"names, such as {_other(state, layout)}, are not those of the published code.",
                stacklevel=4,  # past the family's builder and `from_official`
            )
            state.clear()
            state.update(zip(layout, tensors, strict=True))
            return name
    if expected is not None and 2 * len(state.keys() & expected.keys()) > len(expected):
        return None  # the names are meant, and what lacks or is too many is listed with them
    same = {name: layout for name, layout in layouts.items() if len(layout) == len(tensors)}
    reasons = [f"{name} ({difference(state, layout)})" for name, layout in same.items()]
    counts = ", ".join(f"{name} has {len(layout)}" for name, layout in layouts.items())
    raise ValueError(
        f"The {family} state dict has {len(tensors)} entries with other names than the published code, such as "
        f"{_other(state, next(iter(layouts.values())))}; matched by order it fits none of the networks: "
        f"{'; '.join(reasons) or f'of as many entries, {counts}'}."
    )


def difference(state: Mapping[str, Tensor], layout: Entries) -> str | None:
    """The first entry whose shape is not that of the same place of a layout, in words."""
    for i, ((key, value), (name, shape)) in enumerate(zip(state.items(), layout.items(), strict=False)):
        if tuple(value.shape) != shape:
            return f"entry {i} is {key} {list(value.shape)}, where {name} {list(shape)} is expected"
    return None


def _other(state: Mapping[str, Tensor], layout: Entries) -> str:
    """The first name that is not known."""
    return next((repr(key) for key in state if key not in layout), "none")
