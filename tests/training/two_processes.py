"""Cases that run in several gloo processes at a time: `launch("name", folder)`; each leaves what a test looks at."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__)
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo"}


def launch(case: str, folder: Path, processes: int = 2, timeout: float = 60) -> list[subprocess.CompletedProcess[str]]:
    """Run a case in so many processes, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE), case, str(folder)],
            env={**os.environ, **THREADS, **places, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    done = []
    try:
        for process in running:
            out, err = process.communicate(timeout=timeout)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in running:
            process.kill()
    return done


def digits(folder: Path, shared: bool = True, **changes: Any) -> Any:
    """Two epochs of five steps on 40 recordings in `folder/data`, without dropout."""
    from spikeloom.training import Augment, Data, Optim, Recipe

    return Recipe(
        model="conv_snn_tiny",
        model_args={"dropout": 0.0},
        data=Data("nmnist", root=str(folder / "data"), T=3),
        augment=Augment(shift_px=1, drop=0.2),
        optim=Optim(lr=5e-3),
        shared_statistics=shared,
        **{"epochs": 2, "batch_size": 8, "ema": 0.9, **changes},
    )


def words(**changes: Any) -> Any:
    """Two epochs of four steps on a text."""
    from spikeloom.training import Data, Loss, Optim, Recipe

    return Recipe(
        model="spikegpt_46m",
        model_args={"depth": 2, "embed_dim": 32, "dropout": 0.0},
        data=Data("king_james", context=16, windows=32, validation=4, limit=8, stride=16),
        optim=Optim(lr=1e-3, clip_norm=1.0),
        loss=Loss(logit_penalty=1e-4),
        task="language",
        **{"epochs": 2, "batch_size": 8, **changes},
    )


def quiet(recipe: Any, out: Path, resume: bool = False) -> Any:
    """A run on the CPU."""
    from rich.console import Console

    from spikeloom.training import fit

    return fit(recipe, out, resume=resume, device="cpu", console=Console(quiet=True))


@contextmanager
def signalled(rank: int, step: int) -> Iterator[None]:
    """A signal comes to one process behind a step of the training."""
    from spikeloom.training import run
    from spikeloom.training.interrupt import watch

    class Later:
        def __init__(self, found: Any) -> None:
            self.found, self.asked = found, 0

        @property
        def signal(self) -> int | None:
            self.asked += 1
            if self.asked == step and int(os.environ.get("RANK", "0")) == rank:
                os.kill(os.getpid(), signal.SIGTERM)
            return self.found.signal

        @signal.setter
        def signal(self, value: int | None) -> None:
            self.found.signal = value

    @contextmanager
    def watching(several: bool = False) -> Iterator[Any]:
        with watch(several) as found:
            yield Later(found)

    before, run.watch = run.watch, watching
    try:
        yield
    finally:
        run.watch = before


def _numbers(result: Any) -> dict[str, Any]:
    firing = {name: layer.rate for name, layer in result.firing.items()}
    return {"loss": result.test.loss, "correct": result.test.correct, "samples": result.test.samples, "firing": firing}


def _cut(recipe: Any, out: Path, rank: int, step: int) -> int:
    from spikeloom.training import TrainingInterrupted

    try:
        with signalled(rank, step):
            quiet(recipe, out)
    except TrainingInterrupted as stop:
        return stop.code
    return 0


def numbers(folder: Path) -> dict[str, Any]:
    """Whole runs, with shared statistics and without, in two passes; and one that is cut off by a signal to one."""
    found = {
        "shared": _numbers(quiet(digits(folder), folder / "shared")),
        "apart": _numbers(quiet(digits(folder, shared=False), folder / "apart")),
        "accumulated": _numbers(quiet(digits(folder, shared=False, accumulate=2), folder / "accumulated")),
    }
    apart = digits(folder, shared=False)
    return {**found, "code": _cut(apart, folder / "cut", rank=1, step=6)}


def resumed(folder: Path) -> dict[str, Any]:
    """What `numbers` left goes on, on however many processes."""
    return {"resumed": _numbers(quiet(digits(folder, shared=False), folder / "cut", resume=True))}


def shards(folder: Path) -> dict[str, Any]:
    """Weights divided among the processes; cut off, and continued; and a run that goes on elsewhere."""
    found = {"whole": _numbers(quiet(words(shard=True), folder / "whole"))}
    code = _cut(words(shard=True), folder / "cut", rank=0, step=6)
    found["resumed"] = _numbers(quiet(words(shard=True), folder / "cut", resume=True))
    found["accumulated"] = _numbers(quiet(words(shard=True, accumulate=2), folder / "accumulated"))
    if (folder / "alone").exists():  # one process began it
        found["from_one"] = _numbers(quiet(words(shard=True), folder / "alone", resume=True))
    return {**found, "code": code, "elsewhere": _cut(words(shard=True), folder / "elsewhere", rank=1, step=6)}


def gradients(folder: Path) -> dict[str, Any]:
    """The gradient of a batch in float64, by DDP and in one message, against that of one pass."""
    import torch
    from torch import nn

    from spikeloom.neurons import LIF
    from spikeloom.synapses import BatchNorm2d, NormNeuron
    from spikeloom.training.engine import Engine, FlatEngine, Piece
    from spikeloom.training.parallel import make_engine, share_statistics
    from spikeloom.training.recipe import Recipe
    from spikeloom.training.split import Split
    from spikeloom.training.team import current_team

    team = current_team()
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 5), NormNeuron(5, LIF()), nn.Linear(5, 3)).double()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.layers[0](x)
            return self.layers[2](self.layers[1](hidden)).mean(0)

    def judge(model: nn.Module, x: torch.Tensor, y: torch.Tensor, _: torch.Generator) -> Any:
        logits = model(x)
        return nn.functional.cross_entropy(logits, y), (logits.argmax(1) == y).sum()

    net, draw = Net(), torch.Generator().manual_seed(1)
    errors = {}
    for count in (8, 7, 1):  # 1: a process has nothing to do
        x = torch.randn(3, count, 6, generator=draw, dtype=torch.float64)
        y = torch.randint(3, (count,), generator=draw)
        for module in net.modules():
            if isinstance(module, NormNeuron):
                module.process_group = None
        net.eval() if count == 1 else net.train()
        net.zero_grad()
        loss, right = Engine(net, judge).gradient([Piece(x, y, draw)])
        wanted = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        share_statistics(net)
        split = Split(team.size, (team.rank,), pairs=count == 7)
        rows, weight = split.rows(count, team.rank), split.weight(count, team.rank)
        even = count == 8 or count == 1  # shared statistics of unequal parts are those of all as well
        ddp = Engine(net, judge, team, nn.parallel.DistributedDataParallel(net))
        for engine in (ddp, FlatEngine(net, judge, team)):
            net.zero_grad()
            shared, correct = engine.gradient([Piece(x[:, rows], y[rows], draw, weight)])
            assert correct is not None
            distance = max(float((p.grad - w).abs().max()) for p, w in zip(net.parameters(), wanted, strict=True))
            found = [abs(float(shared - loss)), distance, int(correct) - int(right), even]
            errors[f"{type(engine).__name__} {count}"] = found
    torch.manual_seed(team.rank)
    other = nn.Sequential(nn.Conv2d(2, 3, 3), BatchNorm2d(3)).to(memory_format=torch.channels_last)
    assert isinstance(make_engine(Recipe(), other, judge, team, captured=True), FlatEngine)
    errors["begins with"] = [float(p.detach().sum()) for p in other.parameters()]  # the same in both processes
    try:
        share_statistics(nn.Sequential(BatchNorm2d(3)))
    except ValueError as error:
        errors["refused"] = str(error)
    return errors


def captured(folder: Path) -> dict[str, Any]:
    """Steps whose graphs are pretended, with the gradients in one message, against steps called, with DDP."""
    import importlib.util

    import torch
    from torch import nn

    from spikeloom.training.device_step import DeviceStep, Updates
    from spikeloom.training.engine import Engine, FlatEngine, Piece
    from spikeloom.training.loop import judge_of
    from spikeloom.training.optim import make_optimizer
    from spikeloom.training.recipe import Recipe
    from spikeloom.training.split import Split
    from spikeloom.training.team import current_team

    spec = importlib.util.spec_from_file_location("pretended_graphs", HERE.with_name("pretended_graphs.py"))
    assert spec is not None
    assert spec.loader is not None
    pretended = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pretended)
    team = current_team()
    split, judge = Split(team.size, (team.rank,)), judge_of(Recipe(), torch.device("cpu"))

    def trained(captured: bool) -> list[Any]:
        net, recorder = pretended.net(), pretended.PretendedRecorder()
        ddp = None if captured else nn.parallel.DistributedDataParallel(net)
        engine = FlatEngine(net, judge, team) if captured else Engine(net, judge, team, ddp)
        step = DeviceStep(net, judge, make_optimizer(net, pretended.OPTIM, capturable=True), None, 0.5, engine)
        updates = Updates(step, (lambda: recorder) if captured else None, "on")
        losses = []
        sizes = (8, 8, 8, 7, 8, 7, 7, 7, 7, 8)  # parts of 4 and 3: of shares 4 / 8, 4 / 7 and 3 / 7
        for number, (frames, targets) in enumerate(pretended.batches(sizes).batches):
            rows, weight = split.rows(len(targets), team.rank), split.weight(len(targets), team.rank)
            piece = Piece(frames[:, rows], targets[rows], torch.Generator(), weight)
            updates.send([piece], len(targets), number, 1e-2)
            losses.append(list(updates.sent[-1].report.read()))
        return [losses, [float(p.detach().sum()) for p in net.parameters()], recorder.replays > 0]

    return {"called": trained(False), "captured": trained(True)}


def lost(folder: Path) -> dict[str, Any]:
    """One process ends by itself in the middle of an epoch."""
    from spikeloom.training import run

    train_epoch = run.train_epoch

    def broken(*given: Any) -> Iterator[Any]:
        for number, tally in enumerate(train_epoch(*given)):
            if number == 1 and os.environ["RANK"] == "1":
                os._exit(9)
            yield tally

    run.train_epoch = broken
    return _numbers(quiet(digits(folder), folder / "lost"))


def failing(folder: Path) -> dict[str, Any]:
    """The process that writes cannot; the other one ends with it."""
    from spikeloom.training import session

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    session.save_checkpoint = full
    return _numbers(quiet(digits(folder), folder / "failing"))


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    case.__name__: case for case in (numbers, resumed, shards, gradients, captured, lost, failing)
}


def main(case: str, folder: Path) -> None:
    """Run a case in this process; write what it found."""
    import torch

    from spikeloom.training.team import joined

    torch.set_num_threads(1)
    with joined(torch.device("cpu")):
        found = CASES[case](folder)
    (folder / f"{case}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
