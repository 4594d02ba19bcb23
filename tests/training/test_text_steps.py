"""Steps on token ids: sent ahead and replayed they are those that are waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spikeloom_tests.training.pretended_graphs import CPU, ListedBatches, PretendedRecorder, ahead, tensors, train
from torch import nn

from spikeloom.models import create_model
from spikeloom.training import Data, Loss, Optim, Recipe
from spikeloom.training.device_step import samples_in
from spikeloom.training.loop import Training, start

RECIPE = Recipe(
    data=Data("king_james", context=12),
    optim=Optim(lr=1e-2, min_lr=1e-3, warmup_epochs=0.0, schedule="token", clip_norm=0.5),
    loss=Loss(logit_penalty=1e-4),
    task="language",
    epochs=3,
    bf16=False,
)


def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("spikegpt_46m", vocab_size=23, embed_dim=16, depth=2, dropout=0.0)


def batches(device: torch.device = CPU) -> ListedBatches:
    """Four whole batches `[T, B]`, one like the other, as those of a text are."""
    generator = torch.Generator().manual_seed(1)
    windows = [torch.randint(0, 23, (13, 4), generator=generator).to(device) for _ in range(4)]
    return ListedBatches([(window[:-1], window[1:]) for window in windows])


def test_steps_sent_ahead_equal_steps_that_are_waited_for() -> None:
    plain, recorder = start(RECIPE, model(), CPU), PretendedRecorder()
    sent = ahead(RECIPE, model(), recorder)
    losses = train(plain, batches(), 3)
    assert train(sent, batches(), 3) == pytest.approx(losses, rel=1e-5)
    assert losses[2] < losses[0]
    assert (recorder.aside_calls, recorder.records, recorder.replays) == (3, 1, 9)
    other = tensors(sent)
    for name, value in tensors(plain).items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_the_tally_counts_tokens() -> None:
    training = ahead(RECIPE, model(), None)
    tally = training.tally
    train(training, batches())
    assert (tally.samples, tally.correct, tally.tokens_per_character) == (4 * 12 * 4, None, None)
    assert "accuracy" not in tally.values()
    assert samples_in(torch.zeros(5, 10)) == samples_in(torch.zeros(5, dtype=torch.int64)) == 5


@pytest.mark.gpu
def test_a_graph_takes_token_ids() -> None:
    gpu = torch.device("cuda")

    def trained(setting: str) -> tuple[Training, list[float]]:
        training = start(replace(RECIPE, cuda_graph=setting), model(), gpu)  # type: ignore[arg-type]
        return training, train(training, batches(gpu), 3)

    (captured, losses), (_, plain) = trained("on"), trained("off")
    assert captured.updates is not None
    assert captured.updates.graphs is not None
    assert captured.updates.graphs.recorded == 1
    assert losses == pytest.approx(plain, rel=1e-4)
