"""Scripts for models, attention, epochs, conversion, data and idle GPUs: their options, and small runs on the CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script, which finds its neighbours as it does when it is run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module
    finally:
        sys.path.remove(str(BENCHMARKS))


Script = Callable[[str], ModuleType]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("models", ["race", "maxformer_cifar", "--only", "spikeloom,spiking"], "--only has spiking; expected some of"),
        (
            "models",
            ["race", "maxformer_cifar", "--modes", "train,test"],
            "--modes has test; expected some of train,inf",
        ),
        ("models", ["start", "maxformer_cifar", "--modes", "infer"], "expected some of train for start"),
        ("models", ["budget", "maxformer_cifar", "--device", "cpu"], "expected --device cuda"),
        ("models", ["race", "maxformer_cifar", "--device", "cpu", "--only", "spikeloom graph"], "on cpu"),
        ("attention", ["--only", "block"], "--only has block; expected some of spikeloom,spikingjelly,spikeloom gr"),
        (
            "attention",
            ["--device", "cpu", "--only", "spikeloom graph"],
            "expected some of spikeloom,spikingjelly on cpu",
        ),
        ("attention", ["--dtypes", "float16"], "--dtypes has float16"),
        ("conversion", ["--root", ".", "--methods", "qcfs,best"], "--methods has best; expected some of advanced,"),
        ("conversion", ["--root", ".", "--steps", "4,many"], "--steps is '4,many'; expected whole numbers"),
    ],
)
def test_options_that_are_refused(
    script: Script, name: str, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script(name)._options(given)
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_runs_by_default(script: Script) -> None:
    options = script("models")._options
    names = ["spikeloom", "spikeloom graph", "spikingjelly", "spikingjelly compiled", "spikingjelly fp32 state"]
    assert options(["race", "maxformer_cifar"]).only.split(",") == names
    assert options(["race", "maxformer_cifar"]).modes == "train,infer"
    assert options(["race", "maxformer_cifar", "--dtype", "float32"]).only.split(",") == names[:4]
    assert options(["race", "maxformer_cifar", "--only", "spikingjelly graph"]).only == "spikingjelly graph"
    start = options(["start", "maxformer_cifar", "--device", "cpu"])
    assert (start.only, start.modes) == ("spikeloom,spikingjelly,spikingjelly compiled", "train")


def test_a_race_goes_on_without_what_fails(script: Script) -> None:
    step = script("_steps").Step

    def broken() -> Any:
        raise RuntimeError("no such thing")

    found = script("_contest").contest({"a": lambda: step(lambda: None), "b": broken}, CPU, 3)
    assert found["a"]["eager"]["repetitions"] == 3
    assert found["b"] == {"failure": "RuntimeError: no such thing"}


def test_what_finds_no_memory_beside_the_others_is_timed_alone(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    contest, steps = script("_contest"), script("_steps")
    held: list[str] = []

    class Held:
        def __init__(self, name: str) -> None:
            self.name = name
            held.append(name)

        def __del__(self) -> None:
            held.remove(self.name)

    def maker(name: str) -> Callable[[], Any]:
        def make() -> Any:
            def call() -> None:
                if name == "large" and len(held) > 1:
                    raise torch.OutOfMemoryError("large")

            return steps.Step(call, keep=Held(name))

        return make

    def built(make: Callable[[], Any], device: torch.device) -> tuple[Any, dict[str, Any]]:
        return make(), {"peak_mib": 1.0}

    race = contest.race
    monkeypatch.setattr(contest, "race", lambda jobs, device, repetitions: race(jobs, CPU, repetitions))
    monkeypatch.setattr(contest, "built", built)
    monkeypatch.setattr(contest, "free", lambda device: None)
    found = contest.contest({name: maker(name) for name in ("small", "large")}, torch.device("cuda"), 3)
    assert not held
    assert all(row["peak_mib"] == 1.0 and "eager" in row and "failure" not in row for row in found.values())
    assert ("timed_alone" in found["small"], found["large"]["timed_alone"]) == (False, True)


def test_memory_is_shown_where_it_was_measured(script: Script) -> None:
    models, case = script("models"), script("_networks").Case("maxformer_cifar", "train", 4, 128)
    found: dict[str, Any] = {"eager": {"median": 10.0}}
    assert models._short(case, found) == "10.0 ms, 12800 img/s"
    assert models._short(case, found | {"peak_mib": 512.0}) == "10.0 ms, 12800 img/s, 0.50 GiB"


def test_a_peer_is_trained_with_contiguous_weights(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = script("epoch")

    class Small(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(4, 4, 3)

    monkeypatch.setattr(epoch, "Peer", Small)
    recipe = epoch.replace(epoch.get_recipe("cifar10_10min"), ema=None)
    peer = Small()
    weight, training = peer.weight, epoch.begun(recipe, peer, CPU)
    assert training.model.weight is weight
    assert weight.is_contiguous()
    ours = epoch.begun(recipe, nn.Conv2d(4, 4, 3), CPU).model.weight
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert not ours.is_contiguous()


@pytest.mark.filterwarnings("ignore:the calibration data is not in the range:UserWarning")
def test_conversion_of_a_narrow_network(script: Script, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, N in (("data_batch_1", 80), ("test_batch", 20)):
        records = torch.randint(0, 256, (N, 3073), generator=generator)
        records[:, 0] = torch.arange(N) % 2
        records[:, 1:] //= 1 + records[:, :1]  # the second class is darker
        (tmp_path / f"{name}.bin").write_bytes(records.to(torch.uint8).numpy().tobytes())
    given = (
        f"--root {tmp_path} --allow-partial --device cpu --epochs 1 --quantised-epochs 1 --tuned-epochs 1 --steps 4,16"
    )
    given += " --held-out 20 --calibration 16 --batch 16 --width 2 --rho 2 --variants 2 --budget 0"
    given += f" --methods max,qcfs,qcfs_srp --out {tmp_path}/found.json"
    script("conversion").main(given.split())
    run = json.loads((tmp_path / "found.json").read_text())["runs"][0]
    assert run["data"]["says"][0].startswith("CIFAR-10 train: 80 images, partial")
    names = [(row["network"], row["method"], row["rho"]) for row in run["rows"]]
    assert names == [("relu", "max", 0), ("qcfs 2", "qcfs", 0), ("qcfs 2", "qcfs + srp", 2)]
    assert all(len(row["test"]) == 16 and "failure" not in row for row in run["rows"])
    assert run["best"]["by_latency"]["4"]["T"] + run["best"]["by_latency"]["4"]["rho"] == 4
    assert all(len(found["choices"]) == 4 for found in run["early_exit"])
    assert [found["T"] for found in run["energy"]] == [4, 16]
    assert run["tuned"]["T"] == 4
    assert run["targets"][0]["what"] == "points lost at T = 16"
    assert run["targets"][0]["value"] == run["networks"]["relu"]["test"] - run["best"]["by_latency"]["16"]["test"]


def test_quantised_activation_in_training_is_qcfs(script: Script) -> None:
    nets = script("_conversion_nets")
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    found = []
    for kind in (nets.QCFS, nets.QuickQCFS):
        layer, leaf = kind(4, 1.5).double().train(), x.clone().requires_grad_()
        y = layer(leaf)
        (y * x).sum().backward()
        found.append((y.detach(), leaf.grad, layer.thresh.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_no_kernel_covers(script: Script) -> None:
    idle = script("_trace").idle
    assert idle([]) is None
    # the first tenth is left out; 50 us, of which two kernels at a time cover some, then gaps of 10 and 30 us
    spans = [(0, 1_000), (60_000, 90_000), (20_000, 70_000), (30_000, 40_000), (120_000, 130_000), (100_000, 110_000)]
    found = idle(spans)
    assert found["wall_ms"] == pytest.approx(0.110)
    assert found["idle"] == pytest.approx(20 / 110)
    assert found["busy"] == pytest.approx(90 / 110)
    assert (found["waiting"], found["longest_gap_us"]) == (0, 10)
    assert idle([*spans, (160_000, 170_000)])["waiting"] == pytest.approx(30 / 150)


def test_a_narrow_network_is_fed_from_a_store(script: Script, tmp_path: Path) -> None:
    batches = import_module("spikeloom.training.event_batches")
    kept = batches.MAX_CACHE_BYTES
    script("idle").main(["--tiny", "--out", str(tmp_path / "found.json")])
    assert kept == batches.MAX_CACHE_BYTES
    record = json.loads((tmp_path / "found.json").read_text())
    found = record["results"]["auto"]
    assert found["store"]["made_ms"] > 0
    assert found["repeated"]["made_ms"] is None
    share = 1 - found["repeated"]["step_ms"] / found["store"]["step_ms"]
    assert found["data_share"] == pytest.approx(share)
    assert (record["batch"], record["size"]["recordings"], set(record["read_ms"])) == (4, 8, {"first", "later"})


def test_simulated_recordings_are_as_large_as_asked_for(script: Script) -> None:
    events = script("idle").recording(0, 4_000, 128)
    assert 3_000 <= len(events) <= 5_000
    assert (int(events.x.max()) < 128, int(events.t[-1]) < script("idle").SPAN_US) == (True, True)
    edge = ((events.x - 64.0) ** 2 + (events.y - 64.0) ** 2).sqrt()
    assert ((edge > 10) & (edge < 60)).float().mean() > 0.8


def test_binning_on_a_gpu_is_checked_and_compared_with_the_target(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = script("data")
    monkeypatch.setattr(data, "SENSORS", {"8x9": (8, 9)})
    monkeypatch.setattr(data, "SECOND", 1_600)
    made: list[Any] = []
    monkeypatch.setattr(data, "_median_us", lambda call: made.append(call()) or 0.25)
    rows = data.binning("cpu")
    assert [int(m.sum()) for m in made if m.shape[2] == 2] == [1_600] * 6 + [32_000] * 6
    assert [tuple(m.shape) for m in made if m.shape[2] == 1] == [(16, n, 1, 8, 9) for n in (1, 16, 1, 16)]
    assert [row["mev_s"]["equal times"] for row in rows] == [6_400, 6_400, 128_000, 128_000]
    assert all(row["targets"][0]["met"] for row in rows)
    data.show_binning(rows)
    assert "6.4e+03 >= 3000 pass" in capsys.readouterr().out
