"""Windows: drawn ones depend on (seed, epoch, batch) alone; sliding ones predict every token once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeloom.datasets import IGNORED, TextWindows

TOKENS = np.arange(1000, 1100).astype(np.uint16)  # the token at position i is 1000 + i


def test_targets_are_inputs_one_token_on() -> None:
    inputs, targets = TextWindows(TOKENS, 7).random(5, seed=0, epoch=0, batch=0)
    assert (inputs.shape, targets.shape) == ((5, 7), (5, 7))
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(7))


def test_draws_depend_on_the_three_numbers_alone() -> None:
    windows = TextWindows(TOKENS, 7)
    order = [(seed, epoch, batch) for seed in range(2) for epoch in range(2) for batch in range(3)]
    first = {numbers: windows.random(16, *numbers)[0] for numbers in order}
    torch.manual_seed(1)
    np.random.seed(1)
    again = TextWindows(TOKENS.copy(), 7)
    for numbers in reversed(order):
        assert torch.equal(again.random(16, *numbers)[0], first[numbers]), numbers
    assert len({tuple(found[:, 0].tolist()) for found in first.values()}) == len(order)


def test_draws_are_fixed_numbers() -> None:
    """A run that is continued with a later version must go on with the same windows."""
    starts = TextWindows(TOKENS, 7).random(6, seed=42, epoch=3, batch=5)[0][:, 0] - 1000
    assert starts.tolist() == [20, 61, 53, 51, 41, 51]


def test_starts_are_uniform_and_leave_out_the_last_window() -> None:
    """As the official code: N - (context + 1) starts, 0 to N - (context + 1) - 1."""
    inputs, targets = TextWindows(TOKENS[:20], 9).random(20_000, seed=0, epoch=0, batch=0)
    counts = (inputs[:, 0] - 1000).bincount(minlength=11)
    assert counts[10] == 0
    assert int(targets.max()) == 1018
    # 2,000 expected of each of ten; the standard deviation is 42
    assert (counts[:10] - 2000).abs().max() < 5 * 42


def test_starts_in_a_long_text_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remainder of 32 random bits would put half of them into the first third of 3 * 2^30 tokens."""
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(TextWindows, "at", lambda self, starts: drawn.append(starts))
    tokens = np.broadcast_to(np.uint8(0), (3 << 30,))
    TextWindows(tokens, 7).random(9_000, seed=0, epoch=0, batch=0)
    counts = np.bincount(drawn[0] >> 30, minlength=3)
    assert np.abs(counts - 3000).max() < 5 * 45  # the standard deviation is 45


@pytest.mark.parametrize("length", [10, 11, 12, 29, 30, 31, 100])
@pytest.mark.parametrize("stride", [1, 3, 7, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_sliding_windows_predict_each_token_once(length: int, stride: int, batch_size: int) -> None:
    context = 8
    windows = TextWindows(TOKENS[:length], context)
    seen: list[int] = []
    count = 0
    for inputs, targets in windows.sliding(stride, batch_size):
        assert inputs.shape == targets.shape
        assert inputs.shape[1] == context
        assert len(inputs) <= batch_size
        for row, aims in zip(inputs, targets, strict=True):
            assert torch.equal(row, row[0] + torch.arange(context))
            kept = aims != IGNORED
            assert torch.equal(aims[kept], row[kept] + 1)
            before = torch.arange(1, context + 1)[kept]  # tokens that the target is predicted from
            if count:
                assert int(before.min()) >= context - stride + 1
            seen += aims[kept].tolist()
            count += 1
    assert seen == list(range(1001, 1000 + length))
    assert count == windows.sliding_count(stride)


def test_losses_of_sliding_windows_are_those_of_the_text() -> None:
    """A bigram model needs one token of context, so every stride must give the sum over the whole text."""
    tokens = np.random.default_rng(0).integers(0, 11, 83).astype(np.uint8)
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    text = torch.from_numpy(tokens.astype(np.int64))
    expected = torch.nn.functional.cross_entropy(table[text[:-1]], text[1:], reduction="sum")
    for stride in (1, 5, 16):
        losses = [
            torch.nn.functional.cross_entropy(table[inputs].flatten(0, 1), targets.flatten(), reduction="sum")
            for inputs, targets in TextWindows(tokens, 16).sliding(stride, 3)
        ]
        # float64 sums of 82 terms in another order
        assert torch.stack(losses).sum().item() == pytest.approx(expected.item(), rel=1e-12)


def test_wrong_numbers_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"The text has 9 tokens; windows of context 8 take 10 or more"):
        TextWindows(TOKENS[:9], 8)
    with pytest.raises(ValueError, match="context is 0"):
        TextWindows(TOKENS, 0)
    with pytest.raises(ValueError, match=r"shape \(2, 50\)"):
        TextWindows(TOKENS.reshape(2, 50), 8)
    with pytest.raises(ValueError, match="float64"):
        TextWindows(np.zeros(100), 8)  # type: ignore[arg-type]
    windows = TextWindows(TOKENS, 8)
    for stride in (0, 9):
        with pytest.raises(ValueError, match=f"stride is {stride}; expected 1 to the context, 8"):
            windows.sliding(stride, 4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        windows.sliding(4, 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        windows.random(0, 0, 0, 0)
    with pytest.raises(ValueError, match="starts are from 0 to 92; expected 0 to 91"):
        windows.at(np.array([0, 92]))
    assert windows.at(np.array([91]))[1][0, -1] == 1099


def test_starts_are_integers_of_any_kind() -> None:
    windows = TextWindows(TOKENS, 8)
    for starts in ([3, 91], (3, 91), np.array([3, 91], np.uint8), np.array([3, 91], np.uint64), torch.tensor([3, 91])):
        assert windows.at(starts)[0][:, 0].tolist() == [1003, 1091]
    for wrong in (5, [[1, 2]], [0.5], np.zeros(2), torch.zeros(2), [True], [[1], [1, 2]], ["1"]):
        with pytest.raises(ValueError, match=r"starts is .*expected .*integers"):
            windows.at(wrong)  # type: ignore[arg-type]
