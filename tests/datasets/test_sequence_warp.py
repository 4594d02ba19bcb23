"""Random changes of sequences: where values come from, masks, and the same draws for the same generator."""

from __future__ import annotations

import pytest
import torch

from spikeloom.datasets.sequence_warp import draw_warp


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counted(T: int = 20, B: int = 3, N: int = 9) -> torch.Tensor:
    """Values that say where they are: 100 t + n + 1."""
    return (100 * torch.arange(T)[:, None, None] + torch.arange(N) + 1).float().expand(T, B, N)


def test_no_change_is_none_but_behind_the_end() -> None:
    x, lengths = counted(), torch.tensor([20, 12, 5])
    y = draw_warp(lengths, 20, 9, seeded()).apply(x)
    for sample, length in enumerate(lengths.tolist()):
        assert torch.equal(y[:length, sample], x[:length, sample])
        assert not y[length:, sample].any()


def test_a_shift_moves_all_channels_by_the_same() -> None:
    x, lengths = counted(), torch.tensor([20, 20, 20])
    y = draw_warp(lengths, 20, 9, seeded(1), channel_shift=3).apply(x)
    shifts = set()
    for sample in range(3):
        row = y[4, sample]
        moved = (row - x[4, sample])[row > 0]
        assert len(set(moved.tolist())) == 1
        shifts.add(int(moved[0]))
        assert int((row == 0).sum()) == abs(int(moved[0]))
    assert len(shifts) > 1
    assert max(map(abs, shifts)) <= 3


def test_a_stretch_in_time_keeps_the_order_and_fills_up_with_zeros() -> None:
    x, lengths = counted(B=64), torch.full((64,), 12)
    y = draw_warp(lengths, 20, 9, seeded(2), time_stretch=0.4).apply(x)
    steps = (y[:, :, 0] / 100).floor().long()
    ends = (y[:, :, 0] > 0).sum(0)
    assert int(ends.min()) >= 8
    assert 16 <= int(ends.max()) <= 18
    for sample in range(64):
        inside = steps[: int(ends[sample]), sample]
        assert bool((inside.diff() >= 0).all())
        assert int(inside[0]) == 0
        assert int(inside[-1]) >= 10


def test_masks_are_spans_of_less_than_their_length() -> None:
    x, lengths = torch.ones(30, 200, 12), torch.full((200,), 25)
    y = draw_warp(lengths, 30, 12, seeded(3), time_mask=6, channel_mask=4).apply(x)
    steps = 25 - (y.sum(2) > 0).sum(0)
    channels = 12 - (y.sum(0) > 0).sum(1)
    assert int(steps.max()) == 5
    assert int(channels.max()) == 3
    assert 0.3 < float((steps == 0).float().mean()) < 0.6  # 0.35 without a mask, and a sixth of the masks has no step


def test_the_same_generator_draws_the_same() -> None:
    one, other = (draw_warp(torch.tensor([9, 7]), 9, 5, seeded(4), time_stretch=0.3, channel_mask=2) for _ in range(2))
    assert torch.equal(one.rows, other.rows)
    assert torch.equal(one.columns, other.columns)


def test_a_mask_of_all_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="channel_mask=5"):
        draw_warp(torch.tensor([9]), 9, 5, seeded(), channel_mask=5)
