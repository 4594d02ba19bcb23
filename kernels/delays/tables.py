"""The elements of a layer with whole-number delays, in the orders in which the kernels read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 64
"""Outputs that a kernel works on together; a tile lies within one group."""


class Tables(NamedTuple):
    """Elements by input, for spikes that send themselves on, and by output, for outputs that look their inputs up.

    Attributes:
        sent_weight: flat; tiles of outputs, in them `[I / groups, c, outputs of the tile]`.
        sent_place: int32, likewise: delay * TILE + number of the output in its tile.
        heard_weight: `[O, I / groups c]`, by delay from the longest on, then by input, then by element: the order in
            which the terms of a sum were sent.
        heard_from: int32, likewise: the input.
        heard_delay: int32, likewise.
    """

    sent_weight: Tensor
    sent_place: Tensor
    heard_weight: Tensor
    heard_from: Tensor
    heard_delay: Tensor

    @classmethod
    def of(cls, weight: Tensor, delay: Tensor, size: int, groups: int) -> Tables:
        """Of weights and delays `[O, I / groups, c]` on one device, delays whole numbers.

        Raises:
            ValueError: delays outside of 0 ... size - 1.
        """
        if delay.numel() and not 0 <= int(delay.min()) <= int(delay.max()) < size:
            raise ValueError(
                f"delayed sums: delays from {int(delay.min())} to {int(delay.max())}; expected 0 to K - 1 = {size - 1}."
            )
        outputs, inputs, _ = weight.shape
        per_group = outputs // groups
        o = torch.arange(outputs, device=weight.device)
        place = delay.int() * TILE + (o % per_group % TILE).int()[:, None, None]
        ends = [min(start + TILE, (g + 1) * per_group) for g in range(groups)
                for start in range(g * per_group, (g + 1) * per_group, TILE)]  # fmt: skip
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]

        def by_input(values: Tensor) -> Tensor:
            return torch.cat([tile.permute(1, 2, 0).flatten() for tile in values.split(sizes)])

        order = delay.flatten(1).argsort(dim=1, descending=True, stable=True)
        channel = (o // per_group * inputs)[:, None, None] + torch.arange(inputs, device=o.device)[:, None]

        def by_output(values: Tensor) -> Tensor:
            return values.expand_as(weight).flatten(1).gather(1, order).contiguous()

        return cls(
            by_input(weight), by_input(place), by_output(weight), by_output(channel).int(), by_output(delay).int()
        )
