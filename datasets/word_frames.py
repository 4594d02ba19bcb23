"""Words of an event store to frames, where they lie on a GPU: one index per word, without columns of events between.

A word is time << 31 | y << 16 | x << 1 | p (`store_format.py`). Frames of equally many events need no time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeloom.datasets.frames import number_edges


def count_words(words: Tensor, offsets: Tensor, T: int, height: int, width: int) -> Tensor:
    """Counts `[T, B, 2, H, W]` int32 of words `[N]`, as `frames_by_count` with remainder="last" of their events.

    offsets: `[B + 1]` int64, of the recordings. The words must be of this sensor.
    """
    B, plane = len(offsets) - 1, 2 * height * width
    ends = (offsets[:-1, None] + number_edges(offsets.diff()[:, None], T, None, "last"))[:, 1:]  # [B, T], rising
    place = torch.arange(T * B, device=words.device).view(T, B).t().reshape(-1) * plane  # [B * T], where a frame begins
    number = torch.arange(len(words), device=words.device)
    index = place[torch.searchsorted(ends.reshape(-1).contiguous(), number, right=True)]
    for shift, mask, length in ((0, 1, height * width), (16, 0x7FFF, width), (1, 0x7FFF, 1)):  # p, y, x
        index.add_((words >> shift).bitwise_and_(mask), alpha=length)
    counts = torch.zeros(T * B * plane, dtype=torch.int32, device=words.device)
    return counts.scatter_add_(0, index, counts.new_ones(()).expand(len(index))).view(T, B, 2, height, width)
