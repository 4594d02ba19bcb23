"""Steps that are sent ahead and replayed: the plumbing, with a recorder that stands for CUDA graphs."""

from __future__ import annotations

import copy
import io
import json
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from spikeloom_tests.training.pretended_graphs import (
    CPU,
    OPTIM,
    PretendedRecorder,
    ahead,
    batches,
    net,
    tensors,
    train,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spikeloom.training import Data, Loss, Recipe, Result, TrainingInterrupted, fit, run, snapshot
from spikeloom.training.checkpoint import read_description, read_state, require_checkpoint
from spikeloom.training.engine import Piece
from spikeloom.training.finite import DivergedError
from spikeloom.training.graph import Replayed, signature
from spikeloom.training.log import RunLog
from spikeloom.training.loop import Training, check_graph, graph_obstacle, settle, start, train_epoch
from spikeloom.training.optim import in_memory_as, load_optimizer_state, make_optimizer, optimizer_state
from spikeloom.training.recipe import read_recipe


@pytest.mark.parametrize("graphs", [True, False], ids=["replayed", "eager"])
@pytest.mark.parametrize("ema", [None, 0.8])
def test_steps_sent_ahead_equal_steps_that_are_waited_for(graphs: bool, ema: float | None) -> None:
    recipe = Recipe(optim=OPTIM, ema=ema, epochs=3)
    data = batches((8, 8, 8, 8, 3))
    plain = start(recipe, net(), CPU)
    recorder = PretendedRecorder()
    sent = ahead(recipe, net(), recorder if graphs else None)
    assert train(sent, data, 3) == pytest.approx(train(plain, data, 3), rel=1e-5)
    assert (sent.step, sent.epoch, sent.batch) == (plain.step, plain.epoch, plain.batch) == (15, 3, 0)
    one, other = tensors(plain), tensors(sent)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert (recorder.aside_calls, recorder.records, recorder.replays) == ((6, 1, 9) if graphs else (0, 0, 0))


def test_replayed_and_eager_steps_are_the_same_to_the_last_bit() -> None:
    recipe, data = Recipe(optim=OPTIM, ema=0.8, epochs=2), batches((8, 8, 8, 8, 3))
    one, other = ahead(recipe, net(), PretendedRecorder()), ahead(recipe, net(), None)
    assert train(one, data, 2) == train(other, data, 2)
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


class _NoReading(TorchDispatchMode):
    """Refuses what reads a value of a tensor into Python, which waits for the device and cannot be captured."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{func} reads a tensor")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", [Loss(), Loss("tet", 0.1)], ids=["rate", "tet"])
@pytest.mark.parametrize("shares", [False, True], ids=["labels", "shares"])
def test_a_step_reads_no_tensor(loss: Loss, shares: bool) -> None:
    training = ahead(Recipe(optim=OPTIM, loss=loss, ema=0.9), net(), None)
    frames, targets = batches((8,)).batches[0]
    targets = nn.functional.one_hot(targets, 4).float() if shares else targets
    assert training.updates is not None
    step = training.updates._step
    step.prepare(0.1)
    step.optimizer.step = lambda: None  # type: ignore[assignment]  # the CPU's kernel reads the rate
    with _NoReading():
        step.run([Piece(frames, targets, torch.Generator())])
    assert training.model.norm.num_batches_tracked == 1


def test_the_tally_is_one_step_behind_until_the_epoch_ends() -> None:
    training = ahead(Recipe(epochs=1), net(), PretendedRecorder())
    stepping = train_epoch(training, batches((8, 8, 3)))  # type: ignore[arg-type]
    assert [next(stepping).samples for _ in range(2)] == [0, 8]
    assert (training.step, training.batch) == (2, 2)
    settle(training)
    assert training.tally.samples == 16
    last = next(stepping)
    assert last.samples == 16
    assert list(stepping) == []
    assert last.samples == 19


@pytest.mark.parametrize("bad", [0, 2, 5, 6], ids=["first", "warm-up", "replayed", "last"])
def test_a_bad_step_and_those_after_it_change_nothing(bad: int) -> None:
    recipe, sizes = Recipe(optim=OPTIM, ema=0.8), (8,) * 7
    good = ahead(recipe, net(), PretendedRecorder())
    stepping = train_epoch(good, batches(sizes))  # type: ignore[arg-type]
    for _ in range(bad):
        next(stepping)
    before, updates = tensors(good), good.ema.updates if good.ema is not None else None
    training = ahead(recipe, net(), PretendedRecorder())
    with pytest.raises(DivergedError, match=rf"The loss is nan at step {bad} .* Lower --lr"):
        train(training, batches(sizes, spoiled=bad))
    after = tensors(training)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert not any(value.any() for name, value in after.items() if name not in before)  # fresh optimizer state
    assert (training.step, training.batch) == (bad, bad)
    assert training.tally.samples == 8 * bad
    assert training.ema is not None
    assert training.ema.updates == updates
    assert training.updates is not None
    assert not training.updates.sent


def test_saving_after_a_bad_step_is_refused() -> None:
    training = ahead(Recipe(), net(), None)
    next(train_epoch(training, batches((8, 8), spoiled=0)))  # type: ignore[arg-type]
    with pytest.raises(DivergedError, match="at step 0"):
        snapshot.take(training, 16)
    assert training.step == 0


def test_each_signature_is_recorded_after_its_warm_up_and_has_buffers_of_its_own() -> None:
    out, recorder = torch.zeros(2), PretendedRecorder()
    replayed = Replayed(lambda value: out.copy_(2 * value), lambda: recorder, pytest.fail, warmup=2)
    for number in range(5):
        value = torch.tensor([number, -number], dtype=torch.float32)
        replayed(value)
        assert out.tolist() == [2 * number, -2 * number]
        assert value.tolist() == [number, -number]
    assert (recorder.aside_calls, recorder.records, recorder.replays) == (2, 1, 3)
    for number in range(3):
        replayed(torch.tensor([number, number]))  # int64
    replayed(torch.tensor([[5.0, 0.0], [6.0, 0.0]])[:, 0])  # other strides
    assert out.tolist() == [10.0, 12.0]
    assert (recorder.aside_calls, recorder.records, recorder.replays, replayed.recorded) == (5, 2, 4, 2)


def test_what_cannot_be_recorded_runs_as_it_is_and_the_reason_is_told_once() -> None:
    out, recorder, told = torch.zeros(1), PretendedRecorder("because"), list[str]()
    replayed = Replayed(lambda value: out.add_(value), lambda: recorder, told.append, warmup=1)
    for _ in range(3):
        replayed(torch.ones(1))
        replayed(torch.ones(1, dtype=torch.float64))
    assert (out.item(), told, recorder.records, replayed.recorded) == (6.0, ["because"], 1, 0)


def test_a_warm_up_is_needed() -> None:
    with pytest.raises(ValueError, match="warmup=0; expected at least 1"):
        Replayed(lambda: None, PretendedRecorder, pytest.fail, warmup=0)


def test_a_signature_is_shapes_strides_and_dtypes() -> None:
    x = torch.zeros(2, 3, 4, 5)
    assert signature(x, x) == signature(x + 1, x.clone())
    other = {signature(y) for y in (x, x.double(), x[:1], x.to(memory_format=torch.channels_last))}
    assert len(other) == 4


def test_a_state_goes_from_one_kind_of_optimizer_to_the_other() -> None:
    recipe, data = Recipe(optim=OPTIM, epochs=4), batches((8, 8))
    for source, target in ((False, True), (True, False)):
        one = ahead(recipe, net(), None) if source else start(recipe, net(), CPU)
        train(one, data)
        state = optimizer_state(one.optimizer)
        assert [group["lr"] for group in state["param_groups"]] == pytest.approx([OPTIM.lr] * 2, rel=0.2)
        assert all(isinstance(group["lr"], float) for group in state["param_groups"])
        model = copy.deepcopy(one.model)
        other = make_optimizer(model, OPTIM, capturable=target)
        rates = [group["lr"] for group in other.param_groups]
        load_optimizer_state(other, copy.deepcopy(state))
        assert [group["capturable"] for group in other.param_groups] == [target] * 2
        if target:
            assert all(group["lr"] is rate for group, rate in zip(other.param_groups, rates, strict=True))
            assert rates[0] is rates[1]
            assert rates[0].item() == pytest.approx(state["param_groups"][0]["lr"])
        for p, q in zip(one.model.parameters(), model.parameters(), strict=True):
            p.grad = q.grad = torch.ones_like(p)
        one.optimizer.step()
        other.step()
        for p, q in zip(one.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_strides_follow_the_parameter() -> None:
    like = nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    value = torch.arange(96.0).view(2, 3, 4, 4)
    moved = in_memory_as(value, like)
    assert moved.stride() == like.stride()
    assert not moved.requires_grad
    assert torch.equal(moved, value)
    assert in_memory_as(moved, like) is moved


def quiet(recipe: Recipe, out: Path, **options: Any) -> Result:
    return fit(recipe, out, device="cpu", console=options.pop("console", Console(quiet=True)), **options)


def test_auto_on_a_cpu_waits_for_every_step(tiny: Recipe) -> None:
    assert tiny.cuda_graph == "auto"
    assert start(tiny, net(), CPU).updates is None
    assert start(replace(tiny, cuda_graph="off"), net(), CPU).updates is None


def test_on_is_refused_on_a_cpu_before_anything_is_written(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cuda_graph is \"on\", but the device is 'cpu'; .* --cuda-graph auto"):
        quiet(replace(tiny, cuda_graph="on"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_that_draws_on_the_host_is_refused_on_a_gpu() -> None:
    gpu, recipe = torch.device("cuda"), Recipe(task="reconstruct", data=Data(T=1))
    reason = graph_obstacle(recipe, gpu)
    assert reason is not None
    assert "task 'reconstruct' draws what it hides on the host" in reason
    check_graph(recipe, gpu)
    with pytest.raises(ValueError, match="task 'reconstruct' draws"):
        check_graph(replace(recipe, cuda_graph="on"), gpu)
    assert graph_obstacle(Recipe(), gpu) is None


def test_the_setting_goes_to_json_and_back(tmp_path: Path) -> None:
    recipe = Recipe(cuda_graph="on")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    assert read_recipe(tmp_path / "recipe.json") == recipe
    with pytest.raises(ValueError, match="cuda_graph"):
        Recipe.from_json({"cuda_graph": "sometimes"})


@contextmanager
def sent_ahead(
    patch: pytest.MonkeyPatch, recorder: PretendedRecorder | None, stop: int | None = None
) -> Iterator[None]:
    """Runs send steps as on a GPU; a signal arrives during step `stop`."""

    class Stop:
        asked = 0

        @property
        def signal(self) -> int | None:
            self.asked += 1
            return signal.SIGINT if stop is not None and self.asked >= stop else None

    @contextmanager
    def watch() -> Iterator[Stop]:
        yield Stop()

    def begin(recipe: Recipe, model: nn.Module, device: torch.device, say: Any, *_: Any) -> Training:
        return ahead(recipe, model, recorder, say)

    with patch.context() as inside:
        inside.setattr(run, "start", begin)
        inside.setattr(run, "watch", watch)
        yield


def state_of(out: Path) -> Any:
    """What a run saved, without times."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key != "seconds"}
        return [plain(item) for item in value] if isinstance(value, list) else getattr(value, "tolist", lambda: value)()

    checkpoint = require_checkpoint(out)
    return checkpoint.name, (checkpoint / "model.safetensors").read_bytes(), plain(read_state(checkpoint))


@pytest.mark.parametrize("step", [1, 5, 8, 12])
def test_resumed_equals_uninterrupted(step: int, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(tiny, data=replace(tiny.data, validation=4), ema=0.9)  # 36 recordings, 5 steps, the last of 4
    with sent_ahead(monkeypatch, PretendedRecorder()):
        whole = quiet(tiny, tmp_path / "whole")
    with sent_ahead(monkeypatch, PretendedRecorder(), stop=step), pytest.raises(TrainingInterrupted):
        quiet(tiny, tmp_path / "cut")
    again = replace(tiny, cuda_graph="off")  # on another machine, say
    with sent_ahead(monkeypatch, None):
        resumed = quiet(again, tmp_path / "cut", resume=True)
    assert state_of(tmp_path / "whole") == state_of(tmp_path / "cut")
    assert (resumed.test.loss, resumed.test.correct) == (whole.test.loss, whole.test.correct)
    lines = [
        [{key: line[key] for key in ("step", "loss", "accuracy", "lr")} for line in lines if line["event"] == "epoch"]
        for lines in (RunLog(tmp_path / name / "log.jsonl").lines() for name in ("whole", "cut"))
    ]
    assert lines[0] == lines[1]
    assert read_recipe(tmp_path / "cut" / "recipe.json") == again


def test_a_bad_step_keeps_the_checkpoint(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([1.0] * 8 + [float("nan")] + [1.0] * 9)  # one recording is tried before the first step
    spoil = lambda config: lambda logits, labels: logits.square().mean() * next(steps)  # noqa: E731
    monkeypatch.setattr("spikeloom.training.loop.make_loss", spoil)
    with sent_ahead(monkeypatch, PretendedRecorder()), pytest.raises(DivergedError, match="nan at step 7 "):
        quiet(tiny, tmp_path / "run")
    assert read_description(require_checkpoint(tmp_path / "run")).step == 5


def test_a_failed_capture_is_told_once_and_changes_no_number(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sent_ahead(monkeypatch, PretendedRecorder()):
        quiet(tiny, tmp_path / "captured")
    console = Console(record=True, width=400, file=io.StringIO())
    with sent_ahead(monkeypatch, PretendedRecorder("operation [x] not permitted")):
        quiet(tiny, tmp_path / "eager", console=console)
    assert state_of(tmp_path / "captured") == state_of(tmp_path / "eager")
    notices = [line for line in RunLog(tmp_path / "eager" / "log.jsonl").lines() if line["event"] == "notice"]
    says = "steps are not captured in CUDA graphs, and run one operation at a time: operation [x] not permitted"
    assert [(line["step"], line["text"]) for line in notices] == [(3, says)]
    assert console.export_text().count(says) == 1
    assert not [line for line in RunLog(tmp_path / "captured" / "log.jsonl").lines() if line["event"] == "notice"]


def test_a_failed_capture_is_an_error_where_graphs_are_asked_for() -> None:
    training = ahead(Recipe(), net(), PretendedRecorder("no"), setting="on")
    with pytest.raises(ValueError, match=r"a step cannot be captured: no\. Train without graphs: --cuda-graph off"):
        train(training, batches((8,) * 5))


def test_released_graphs_are_gone_at_once_and_steps_go_on() -> None:
    recorder = PretendedRecorder()
    training, data = ahead(Recipe(), net(), recorder), batches((8,) * 5)
    train(training, data)
    assert training.updates is not None
    graphs = weakref.ref(training.updates.graphs)
    training.updates.release()
    assert graphs() is None  # no cycle keeps model and memory until the collector runs
    assert all(p.grad is None for p in training.model.parameters())  # a replay's lie in the memory of the graph
    train(training, data)
    assert (training.step, recorder.aside_calls, recorder.replays) == (10, 3, 2)


def test_a_known_obstacle_is_told_at_the_first_step() -> None:
    told: list[tuple[int, str]] = []
    training = ahead(Recipe(), net(), None)
    assert training.updates is not None
    training.updates._obstacle, training.updates._say = "it is so", partial(lambda *said: told.append(said))
    train(training, batches((8, 8)), 2)
    assert [(step, text.rpartition(": ")[2]) for step, text in told] == [(0, "it is so")]


def test_a_first_stage_has_no_graphs_where_the_second_has_none(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeloom.training.recipes._RECIPES", {"first_stage": lambda: tiny})
    for setting, expected in (("off", "off"), ("on", "auto"), ("auto", "auto")):
        first = run._first_stage(replace(tiny, pretrain="first_stage", cuda_graph=setting))  # type: ignore[arg-type]
        assert first is not None
        assert first.cuda_graph == expected
