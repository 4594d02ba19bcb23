"""Networks with learned delays from recipes: optimiser, schedule, evaluation, resuming, and what is refused."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from spikeloom_tests.training.pretended_graphs import ListedBatches, PretendedRecorder, ahead, tensors, train
from spikeloom_tests.training.tiny_sequences import CHANNELS, fixed_steps, tiny_part, use

from spikeloom import cli
from spikeloom.models import DelaySchedule, DelaySNN, create_model, parameter_groups
from spikeloom.models.delay_readout import delay_loss, read_out
from spikeloom.training import Augment, Data, Loss, Optim, Recipe, Result, TrainingInterrupted, fit, get_recipe, run
from spikeloom.training.cli import evaluate
from spikeloom.training.data import Batches, load_train
from spikeloom.training.delay_steps import begin_epoch, delay_schedule, make_adam
from spikeloom.training.energy_report import report_energy
from spikeloom.training.finite import DivergedError
from spikeloom.training.log import RunLog
from spikeloom.training.loop import start, train_epoch
from spikeloom.training.losses import decide, make_loss
from spikeloom.training.model_hooks import countable

CPU = torch.device("cpu")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    return use(monkeypatch)


def quiet(recipe: Recipe, out: Path, resume: bool = False) -> Result:
    return fit(recipe, out, resume=resume, device="cpu", console=Console(quiet=True))


def small(recipe: Recipe, seed: int = 0) -> DelaySNN:
    torch.manual_seed(seed)
    model = create_model(recipe.model, in_features=CHANNELS, num_classes=3, **recipe.model_args)
    assert isinstance(model, DelaySNN)
    return model


def interrupted(recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Train until it has been asked so many times whether to stop."""

    class Stop:
        asked = 0

        @property
        def signal(self) -> int | None:
            self.asked += 1
            return signal.SIGINT if self.asked >= stop else None

    @contextmanager
    def watch() -> Iterator[Stop]:
        yield Stop()

    with monkeypatch.context() as patch:
        patch.setattr(run, "watch", watch)
        with pytest.raises(TrainingInterrupted):
            quiet(recipe, out)


def same(one: Result, other: Result) -> bool:
    first, second = (load_file(result.checkpoint / "model.safetensors") for result in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_learns_and_is_evaluated_with_whole_delays(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(recipe, epochs=25, augment=Augment(), model_args={"hidden": 24, "max_delay": 15, "dropout": 0.0})
    result = quiet(recipe, tmp_path / "run")
    assert result.test.accuracy > 0.8
    assert sorted(result.firing) == ["blocks.0.fire", "blocks.1.fire"]
    weights = load_file(result.checkpoint / "model.safetensors")
    positions = weights["blocks.0.synapse.P"]
    assert not torch.equal(positions, positions.round())  # saved as they are trained
    assert torch.allclose(weights["blocks.0.synapse.SIG"], torch.tensor(0.23))
    assert evaluate([str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert f"accuracy {result.test.accuracy:.2%}" in " ".join(capsys.readouterr().out.split())


def test_the_steps_are_those_of_the_published_scheme(recipe: Recipe) -> None:
    recipe = replace(recipe, augment=Augment(), model_args={**recipe.model_args, "dropout": 0.0})
    training = start(recipe, small(recipe), CPU)
    batches = Batches(tiny_part(recipe.data, "train"), recipe.data, 8, CPU)
    mine = small(recipe).train()
    schedule = DelaySchedule(epochs=5, lr=2e-3, sigma=4.0)
    groups = parameter_groups(mine, lr=2e-3)
    weights = torch.optim.Adam([group for group in groups if group["name"] != "positions"])
    positions = torch.optim.Adam([group for group in groups if group["name"] == "positions"])
    for epoch in range(5):
        schedule.apply(epoch, mine, weights, positions)
        for x, labels in batches.shuffled(recipe.seed, epoch):
            loss = delay_loss(mine(x), labels)
            for optimizer in (weights, positions):
                optimizer.zero_grad()
            loss.backward()
            weights.step()
            positions.step()
            mine.settle_()
        for _ in train_epoch(training, batches):
            pass
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(training.model.state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_absent_synapses_stay_absent_and_positions_in_range(recipe: Recipe, tmp_path: Path) -> None:
    result = quiet(replace(recipe, optim=replace(recipe.optim, position_factor=2000.0)), tmp_path / "run")
    weights = load_file(result.checkpoint / "model.safetensors")
    for layer in ("blocks.0", "blocks.1", "head"):
        assert bool((weights[f"{layer}.synapse.weight"][~weights[f"{layer}.synapse.mask"]] == 0).all())
        assert float(weights[f"{layer}.synapse.P"].abs().max()) == 4.0


@pytest.mark.parametrize("stop", [6, 10], ids=["within an epoch", "between epochs"])
def test_a_resumed_run_is_bit_exact(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    chosen = replace(recipe, data=replace(recipe.data, validation=9), select="validation", watch_test=True, ema=0.9)
    straight = quiet(chosen, tmp_path / "straight")

    interrupted(chosen, tmp_path / "cut", monkeypatch, stop)
    resumed = quiet(chosen, tmp_path / "cut", resume=True)
    assert same(straight, resumed)
    assert straight.test.loss == resumed.test.loss
    assert (straight.epochs, straight.peak) == (resumed.epochs, resumed.peak)
    again = quiet(chosen, tmp_path / "cut", resume=True)  # a finished run gives the same once more
    assert again.test.loss == resumed.test.loss


def test_the_best_epoch_is_kept(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = replace(recipe, data=replace(recipe.data, validation=9), select="validation", watch_test=True, epochs=6)
    result = quiet(chosen, tmp_path / "run")
    lines = [line for line in RunLog(tmp_path / "run" / "log.jsonl").lines() if line["event"] == "epoch"]
    best = max(lines, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    assert result.epochs == best["epoch"]
    assert result.test.accuracy == best["test_accuracy"]
    assert result.peak is not None
    assert result.peak.accuracy == max(line["test_accuracy"] for line in lines)
    assert evaluate([str(tmp_path / "run"), "--device", "cpu", "--part", "validation"]) == 0
    assert f"accuracy {best['validation_accuracy']:.2%}" in " ".join(capsys.readouterr().out.split())


def test_a_part_for_validation_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = replace(use(monkeypatch, validates=True).data, validation=6)
    whole, held = load_train(data)
    assert (len(whole), None if held is None else len(held)) == (36, 6)
    with pytest.raises(ValueError, match="has only 9 recordings for validation"):
        load_train(replace(data, validation=10))


def test_batches_have_zeros_behind_the_end(recipe: Recipe) -> None:
    part = tiny_part(recipe.data, "train")
    batches = Batches(part, recipe.data, 8, CPU)
    first, labels = next(batches.in_order())
    lengths = part.lengths[:8]
    assert first.shape == (int(lengths.max()), 8, CHANNELS)
    assert first.dtype == torch.float32
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    for sample, length in enumerate(lengths.tolist()):
        assert torch.equal(first[:length, sample], part[sample].float())
        assert not first[length:, sample].any()
    fixed = Batches(part, replace(recipe.data, steps=16), 8, CPU)
    assert {tuple(x.shape) for x, _ in fixed.in_order()} == {(16, 8, CHANNELS), (16, 4, CHANNELS)}
    one, other = (next(fixed.shuffled(0, 1, start=2))[0] for _ in range(2))
    assert torch.equal(one, other)


def test_mixed_sequences_have_shares(recipe: Recipe) -> None:
    augment = Augment(time_mask=4, channel_mask=2, sequence_mix=True)
    batches = Batches(tiny_part(recipe.data, "train"), recipe.data, 8, CPU, augment)
    x, shares = next(batches.shuffled(0, 0))
    assert x.shape[1:] == (8, CHANNELS)
    assert shares.shape == (8, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert float(shares.max(1).values.min()) < 1


@pytest.mark.parametrize("kind", ["sum", "mean", "max", "spike_count", "nll"])
def test_losses_and_decisions_are_of_the_same_read_out(kind: str) -> None:
    outputs, labels = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    loss = make_loss(Loss(kind))(outputs, labels)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, delay_loss(outputs, labels, kind))
    assert torch.equal(decide(outputs, kind), read_out(outputs, kind).argmax(1))
    smoothed = make_loss(Loss(kind, label_smoothing=0.1))(outputs, labels)  # type: ignore[arg-type]
    shares = torch.nn.functional.one_hot(labels, 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(smoothed, delay_loss(outputs, shares, kind))


@pytest.mark.parametrize("cycle", [True, False], ids=["beta1 cycles", "beta1 stays"])
def test_steps_sent_ahead_are_the_same(recipe: Recipe, cycle: bool) -> None:
    recipe = fixed_steps(replace(recipe, augment=Augment(), optim=replace(recipe.optim, cycle_momentum=cycle)))
    recipe = replace(recipe, model_args={**recipe.model_args, "dropout": 0.0})
    plain, recorder = start(recipe, small(recipe), CPU), PretendedRecorder()
    sent = ahead(recipe, small(recipe), recorder)
    data = Batches(tiny_part(recipe.data, "train"), recipe.data, 8, CPU)
    losses = [train(training, data, epochs=4) for training in (plain, sent)]  # type: ignore[arg-type]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, other = tensors(plain), tensors(sent)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=2e-3, atol=2e-4, msg=name)
    rates = [group["lr"] for group in sent.optimizer.param_groups]
    assert all(isinstance(rate, torch.Tensor) for rate in rates)
    assert float(rates[-1]) == pytest.approx(DelaySchedule(5, 2e-3).at(3).position_lr)
    # with beta1 as a number in the graph, each epoch is captured anew, after one step that is not
    assert (recorder.records, recorder.replays) == ((4, 12) if cycle else (1, 13))


def test_a_bad_step_changes_nothing(recipe: Recipe) -> None:
    recipe = fixed_steps(replace(recipe, augment=Augment()))
    drawn = list(Batches(tiny_part(recipe.data, "train"), recipe.data, 8, CPU).shuffled(0, 0))
    training, untouched = (ahead(recipe, small(recipe), None) for _ in range(2))
    torch.manual_seed(1)
    train(untouched, ListedBatches(drawn[:2]))
    torch.manual_seed(1)
    with pytest.raises(DivergedError, match="at step 2"):
        train(training, ListedBatches([*drawn[:2], (drawn[2][0] * math.nan, drawn[2][1])]))
    one, other = tensors(untouched), tensors(training)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_operations_are_counted_with_whole_delays_until_all_has_arrived(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = quiet(replace(recipe, epochs=1), tmp_path / "run")
    report = report_energy(result.checkpoint, replace(recipe, epochs=1), CPU, Console(quiet=True), result.test)
    longest = int(tiny_part(recipe.data, "test").lengths.max())
    tails = sum(layer.tail_steps for layer in small(recipe).delayed())
    assert longest + tails == report.counts.T  # one number of steps, whatever the batches
    assert report.accuracy == result.test.accuracy
    assert report.accuracy_by_step[-1] == report.accuracy
    assert [layer.op for layer in report.counts.layers] == ["delay_linear"] * 3
    assert f"with {tails} steps of zeros behind the input" in str(report.counts.setting["data"])
    assert cli.main(["energy", str(tmp_path / "run"), "--device", "cpu", "--strict", "--samples", "5"]) == 0
    assert cli.main(["energy", recipe.model, "--data", "tiny_sequences", "--device", "cpu", "--samples", "5"]) == 0
    assert "operations per inference" in " ".join(capsys.readouterr().out.split())


def test_a_network_is_itself_again_after_an_evaluation(recipe: Recipe) -> None:
    model = small(recipe).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with countable(model) as silent:
        assert silent > 0
        assert not model.training
        assert {layer.version for layer in model.delayed()} == {"max"}
        assert len(model(torch.zeros(11 + silent, 2, CHANNELS))) == 11 + silent
        with pytest.raises(ValueError, match="zeros behind the input"):
            model(torch.zeros(silent - 1, 2, CHANNELS))
    assert model.training
    assert {(layer.version, layer.tail) for layer in model.delayed()} == {("gauss", "official")}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("cycle", [True, False], ids=["beta1 cycles", "beta1 stays"])
def test_graphs_give_what_calls_give(recipe: Recipe, cycle: bool) -> None:
    recipe = fixed_steps(replace(recipe, augment=Augment(), optim=replace(recipe.optim, cycle_momentum=cycle)))
    recipe = replace(recipe, model_args={**recipe.model_args, "dropout": 0.0})
    device, found = torch.device("cuda"), []
    for setting in ("off", "on"):
        training = start(replace(recipe, cuda_graph=setting), small(recipe), device)  # type: ignore[arg-type]
        data = Batches(tiny_part(recipe.data, "train"), recipe.data, 8, device)
        losses = []
        for _ in range(4):
            losses += train(training, data)  # type: ignore[arg-type]
            with countable(training.model) as silent:
                training.model(torch.zeros(5 + silent, 2, CHANNELS, device=device))
        assert training.updates is not None
        assert (training.updates.graphs is None) == (setting == "off")
        assert training.updates.graphs is None or training.updates.graphs.recorded == 1
        found.append((losses, tensors(training)))
    (losses, one), (others, other) = found
    assert losses == pytest.approx(others, rel=1e-3)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-2, atol=1e-2, msg=name)


def test_the_last_epochs_can_have_whole_delays(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(recipe, optim=replace(recipe.optim, whole_epochs=2))
    straight = quiet(recipe, tmp_path / "straight")
    weights = load_file(straight.checkpoint / "model.safetensors")
    positions = weights["blocks.0.synapse.P"]
    assert torch.equal(positions, positions.round())
    assert not weights["blocks.0.synapse.SIG"].any()
    interrupted(recipe, tmp_path / "cut", monkeypatch, 18)  # in the fourth of five epochs
    assert same(straight, quiet(recipe, tmp_path / "cut", resume=True))


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
def test_every_version_becomes_whole_once(version: str) -> None:
    torch.manual_seed(0)
    model = create_model("delays_shd_2l_1kc", in_features=6, hidden=8, max_delay=7, version=version)
    assert isinstance(model, DelaySNN)
    config = Optim(schedule="delays", whole_epochs=2)
    optimizer = make_adam(model, config, capturable=False)
    schedule = delay_schedule(config, 5, model)
    assert begin_epoch(schedule, 3, model, optimizer, whole=True) > 0
    for layer in model.delayed():
        assert torch.equal(layer.P, layer.P.round())
        assert layer.SIG is None or (layer.version == "max" and not layer.SIG.any())
    before = [layer.P.clone() for layer in model.delayed()]
    assert begin_epoch(replace(schedule, cycle_momentum=False), 4, model, optimizer, whole=True) == 0
    assert all(map(torch.equal, before, (layer.P for layer in model.delayed())))
    with pytest.raises(ValueError, match=r"whole_epochs is 2 of 1 epochs, .* never be trained"):
        delay_schedule(config, 1, model)


@pytest.mark.parametrize("delays", ["fixed", "none"])
def test_the_baselines_train(recipe: Recipe, tmp_path: Path, delays: str) -> None:
    recipe = replace(recipe, model_args={**recipe.model_args, "delays": delays}, epochs=2)
    result = quiet(recipe, tmp_path / "run")
    weights = load_file(result.checkpoint / "model.safetensors")
    if delays == "fixed":
        positions = weights["blocks.0.synapse.P"]
        assert torch.equal(positions, positions.round())
        assert not weights["blocks.0.synapse.SIG"].any()
    else:
        assert "blocks.0.synapse.P" not in weights
    assert math.isfinite(result.test.mean_loss)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: replace(r, model="conv_snn_tiny", model_args={}), "reads frames or images"),
        (lambda r: replace(r, data=Data("saccade_mnist"), augment=Augment()), "reads sequences"),
        (lambda r: replace(r, loss=Loss("rate")), "loss.name 'rate' is not for networks with delays"),
        (lambda r: replace(r, optim=Optim()), "optim.schedule 'step' is not for"),
        (lambda r: replace(r, data=replace(r.data, T=4)), "T changes nothing there"),
        (lambda r: replace(r, data=replace(r.data, speaker="theo")), "speaker changes nothing there"),
        (lambda r: replace(r, augment=Augment(flip=0.5)), "Augment.flip cannot change"),
        (lambda r: replace(r, augment=Augment(channel_mask=6)), "has 6 channels"),
        (lambda r: replace(r, augment=Augment(time_mask=99, channel_mask=2, sequence_mix=True)), "time_mask is 99"),
        (lambda r: replace(r, model_args={"in_features": 4}), "model_args has in_features=4"),
        (lambda r: replace(r, model_args={"readout": "max"}), "model_args has readout='max'"),
        (lambda r: replace(r, data=Data("shd")), "shd_train.h5"),
    ],
    ids=["model", "data", "loss", "schedule", "T", "speaker", "flip", "mask", "mix", "channels", "readout", "root"],
)
def test_what_does_not_fit_is_refused(recipe: Recipe, tmp_path: Path, change: object, says: str) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=says):
        quiet(change(recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_of_another_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="min_lr changes nothing"):
        Optim(schedule="delays", min_lr=1e-5)
    with pytest.raises(ValueError, match="position_factor changes nothing"):
        Optim(position_factor=10.0)
    with pytest.raises(ValueError, match=r"select is 'validation' with data\.validation=0"):
        Recipe(select="validation")
    with pytest.raises(ValueError, match="sequence_mix is True"):
        Augment(sequence_mix=True)
    with pytest.raises(ValueError, match="steps changes nothing there"):
        fit(Recipe(data=Data(steps=5)), "unused", device="cpu")
    with pytest.raises(ValueError, match="time_stretch cannot change"):
        fit(Recipe(augment=Augment(time_stretch=0.1)), "unused", device="cpu")


def test_the_published_numbers() -> None:
    found = {
        name: (r.model, r.data.name, r.epochs, r.batch_size, r.data.validation, r.watch_test)
        for name in ("shd", "ssc", "ssc_1kc", "gsc", "gsc_1kc")
        for r in [get_recipe(f"delays_{name}_paper")]
    }
    assert found == {
        "shd": ("delays_shd_2l_1kc", "shd", 150, 256, 816, True),
        "ssc": ("delays_ssc_3l_2kc", "ssc", 60, 128, 9981, False),
        "ssc_1kc": ("delays_ssc_3l_1kc", "ssc", 60, 128, 9981, False),
        "gsc": ("delays_ssc_3l_2kc", "speech_commands", 100, 128, 9981, False),
        "gsc_1kc": ("delays_ssc_3l_1kc", "speech_commands", 100, 128, 9981, False),
    }
    for name in found:
        recipe = get_recipe(f"delays_{name}_paper")
        optim = recipe.optim
        assert (optim.lr, optim.weight_decay, optim.eps, optim.clip_norm) == (1e-3, 1e-5, 1e-8, None)
        assert (optim.schedule, optim.position_factor, optim.sigma_epochs, optim.cycle_momentum) == (
            "delays", 100.0, None, True,
        )  # fmt: skip
        assert (recipe.loss, recipe.augment, recipe.select, recipe.bf16) == (
            Loss("sum"),
            Augment(),
            "validation",
            False,
        )
        assert recipe.data.steps is None
