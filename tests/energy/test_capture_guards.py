"""What the counter refuses, and what it must not mix up."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from spikeloom.energy import count
from spikeloom.energy.counts import NormCount
from spikeloom.energy.diff import check


def spikes(*shape: int) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def test_a_run_is_entered_once_at_a_time() -> None:
    net = nn.Linear(4, 2)
    with count(net) as run:
        with pytest.raises(RuntimeError, match="counting already"):
            run.__enter__()
        net(spikes(3, 2, 4))
    net(spikes(5, 2, 4))  # no hook is left behind
    with run:
        net(spikes(3, 2, 4))
    assert run.counts().samples == 4


def test_the_model_in_another_thread_is_refused_and_other_models_there_do_not_disturb() -> None:
    net, other, caught = nn.Linear(4, 2), nn.Sequential(nn.Linear(7, 7)), []

    def work() -> None:
        other(spikes(3, 7))
        try:
            net(spikes(3, 2, 4))
        except RuntimeError as error:
            caught.append(str(error))

    with count(net) as run:
        net(spikes(3, 2, 4))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        net(spikes(3, 2, 4))
    assert "another thread" in caught[0]
    assert [layer.name for layer in run.counts().layers] == ["linear"]
    assert run.counts().samples == 4


def test_a_batch_holds_all_its_steps_and_no_more() -> None:
    net, x = nn.Linear(4, 2), spikes(4, 3, 4)
    with count(net) as run:
        with pytest.raises(ValueError, match="saw 8 time steps"), run.batch(T=4):
            [net(step) for step in [*x, *x]]
        with pytest.raises(ValueError, match="nothing ran"), run.batch(T=4, B=3):
            pass
        with run.batch(T=4):
            for step in x:
                net(step)
    assert run.counts().samples == 3
    assert run.counts().layers[0].sop.shape == (4, 3)


def test_samples_first_inside_a_time_first_network() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.transpose(0, 1)).transpose(0, 1)

    net, x = Turned(), spikes(4, 3, 4)
    with torch.no_grad(), count(net) as run:
        net(x)
    layer = run.counts().layers[0]
    assert layer.sop.tolist() == (2 * x.sum(-1)).int().tolist()
    assert layer.dense_exact == 8


def test_complex_states_are_listed() -> None:
    class Resonator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 2)
            self.w = nn.Parameter(torch.complex(torch.tensor(-0.1), torch.tensor(1.0)))

        def forward(self, x: Tensor) -> Tensor:
            z = torch.zeros(x.shape[1], 2, dtype=torch.complex64)
            out = []
            for step in x:
                z = torch.exp(self.w) * z + self.lin(step)
                out.append(z.real)
            return torch.stack(out)

    net, x = Resonator(), spikes(4, 3, 4)
    with torch.no_grad(), count(net) as run:
        net(x)
    counts = run.counts()
    assert counts.layer("lin").sop.tolist() == (2 * x.sum(-1)).int().tolist()
    assert counts.uncounted


def test_empty_inputs_and_unrelated_runs() -> None:
    first = nn.Linear(4, 2)
    with count(first), pytest.raises(ValueError, match="empty"):
        first(spikes(3, 0, 4))
    runs = []
    for net in (nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2))):
        with count(net) as run:
            net(spikes(2, 3, 4))
        runs.append(run.counts())
    with pytest.raises(ValueError, match="no layer in common"):
        check(*runs)


def test_a_pass_that_failed_leaves_nothing_that_changes_the_next() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.bn, self.fail = nn.Linear(4, 2, bias=False), nn.BatchNorm1d(2), False

        def forward(self, x: Tensor) -> Tensor:
            y = self.lin(x.flatten(0, 1))
            if self.fail:
                y.abs()  # a second reader: here the normalisation would not fold
            y = self.bn(y)
            if self.fail:
                raise KeyError("on purpose")
            return y

    net = Fails().eval()
    with torch.no_grad(), count(net) as run:
        net.fail = True
        with pytest.raises(KeyError, match="on purpose"):
            net(spikes(3, 2, 4))
        net.fail = False
        net(spikes(3, 2, 4))
    counts = run.counts()
    assert counts.samples == 2
    assert [norm.folds_into for norm in counts.of(NormCount)] == ["lin"]


def test_batches_with_and_without_a_loop_outside_in_one_run() -> None:
    net, x = nn.Linear(4, 2), spikes(4, 3, 4)
    with count(net) as run:
        net(x)
        with run.batch(T=4):
            for step in x:
                net(step)
    layer = run.counts().layers[0]
    assert layer.sop[:, :3].tolist() == layer.sop[:, 3:].tolist() == (2 * x.sum(-1)).int().tolist()


class Rows(nn.Module):
    """Linear, then a normalisation of all its rows `[1, T B N, C]`, or, `by_step`, of `[B, N, C]` step by step."""

    def __init__(self, by_step: bool = False) -> None:
        super().__init__()
        self.lin, self.norm, self.by_step = nn.Linear(6, 4, bias=False), _Channels(4), by_step

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(x)
        if self.by_step:
            return torch.stack([self.norm(step) for step in y])
        return self.norm(y.flatten(0, 2).unsqueeze(0)).view(y.shape)


class _Channels(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


@pytest.mark.parametrize("by_step", [False, True], ids=["all steps", "step by step"])
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("sizes", [(2,), (1,), (2, 1), (1, 2)], ids=str)
def test_a_normalisation_of_one_sample_is_no_single_step(by_step: bool, T: int, sizes: tuple[int, ...]) -> None:
    net = Rows(by_step).eval()
    with torch.no_grad(), count(net, strict=True) as run:
        for B in sizes:
            net(spikes(T, B, 8, 6))
    (norm,) = run.counts().of(NormCount)
    assert (norm.elements, norm.folds_into) == (8 * 4, "lin")
