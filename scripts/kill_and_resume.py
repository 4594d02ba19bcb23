"""Kill a training (kill -9) at random moments, resume it, and compare its end with that of one that nobody disturbed.

    python scripts/kill_and_resume.py --kills 50
    python scripts/kill_and_resume.py --kills 10 --processes 2
    python scripts/kill_and_resume.py --kills 10 --store

A training of simulated digits (with --store from an event store, read batch by batch) writes a checkpoint after every
epoch. Each attempt is killed at a random moment of one of its phases: while data are read, in the middle of an epoch,
while files of a checkpoint are written, between those and the new name, while older checkpoints are deleted, while the
validation part is evaluated. A signal that asks to save (SIGTERM) comes now and then as well. After every kill the
newest checkpoint must load whole and be no older than before. At the end the weights must be those of the undisturbed
run, bit for bit, and the log's epochs and the test's numbers too. Exit code 0: all of that held.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASES = ("read", "epoch", "write", "rename", "delete", "evaluate", "anywhere", "sigterm")
_HELD = ("loss", "accuracy", "validation_loss", "validation_accuracy", "lr", "epoch", "step")
_VARIABLE = "SPIKELOOM_KILL"
_ENDED = 0


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    kills: int
    seed: int
    processes: int
    epochs: int
    folder: Path
    store: Path | None


def main() -> int:
    """Run the undisturbed training, then the other one."""
    options = _options()
    random.seed(options.seed)
    if options.store is not None:
        _pack(options.store)
    whole, cut = options.folder / "whole", options.folder / "cut"
    if _attempt(options, whole, None) != _ENDED:
        print("the undisturbed training failed")
        return 1
    seen, newest, done = Counter[str](), -1, False
    for number in range(options.kills):
        phase = PHASES[number % len(PHASES)]
        done = _attempt(options, cut, phase) == _ENDED
        newest = _checked(cut, newest)
        seen[phase if not done else "too late"] += 1
        print(f"{number + 1:3d}  {phase:9s} newest checkpoint: step {newest}{'  (ended)' * done}", flush=True)
        if done:
            _compare(whole, cut)
            shutil.rmtree(cut)
            newest = -1
    if not done and _attempt(options, cut, None) != _ENDED:
        print("the last resumption failed")
        return 1
    if cut.exists():
        _compare(whole, cut)
    print(f"{sum(seen.values())} disturbed starts: {dict(seen)}; no checkpoint was lost or damaged, all numbers agree")
    return 0


def _options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--store", action="store_true")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    store = folder / "digits.events" if given.store else None
    return Options(given.kills, given.seed, given.processes, given.epochs, folder, store)


def _pack(path: Path) -> None:
    """Some simulated digits as an event store, with parts to train, validate and test on."""
    from spikeloom.datasets import pack_store, saccade_mnist

    digits = saccade_mnist("train")
    chosen = range(0, len(digits), len(digits) // 80)
    made = [(digits[index], int(digits.labels[index])) for index in chosen]
    pack_store(path, made, digits.height, digits.width, parts=[(0, 0, 0, 1, 2)[i % 5] for i in range(len(made))])


def _attempt(options: Options, out: Path, phase: str | None) -> int:
    """Start or resume the training, disturbed in a phase (None: not at all); returns the first exit code."""
    resume = (out / "recipe.json").is_file()
    words = [sys.executable, __file__, "--train", str(out), str(options.epochs), str(int(resume))]
    words += [] if options.store is None else [str(options.store)]
    when = json.dumps({"phase": phase, "draw": random.random()}) if phase else ""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(random.randrange(20_000, 60_000)), "WORLD_SIZE": str(options.processes)}
    hit = random.randrange(options.processes)
    running = []
    for rank in range(options.processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if options.processes > 1 else {}
        own = {_VARIABLE: when if rank == hit or phase in ("write", "rename", "delete") else ""}
        running.append(subprocess.Popen(words, env={**environment, **place, **own}))
    codes = [process.wait(timeout=600) for process in running]
    return next((code for code in codes if code), 0)


def _checked(out: Path, before: int) -> int:
    """The step of the newest checkpoint, which loads whole.

    Raises:
        SystemExit: it does not, or is older than the one before.
    """
    from spikeloom.training.checkpoint import find_checkpoint, load_model, read_description, read_state

    found = find_checkpoint(out) if out.is_dir() else None
    if found is None:
        if before >= 0:
            raise SystemExit(f"the checkpoint of step {before} is lost")
        return -1
    step = read_description(found).step
    load_model(found)
    if read_state(found)["progress"]["step"] != step or step < before:
        raise SystemExit(f"{found} is wrong, or older than step {before}")
    return step


def _compare(whole: Path, cut: Path) -> None:
    """Raise where two finished runs differ."""
    from spikeloom.training.checkpoint import require_checkpoint

    one, other = ((require_checkpoint(run) / "model.safetensors").read_bytes() for run in (whole, cut))
    if one != other:
        raise SystemExit("the weights differ from those of the undisturbed training")
    if _lines(whole) != _lines(cut):
        raise SystemExit(f"the logs differ:\n{_lines(whole)}\n{_lines(cut)}")


def _lines(run: Path) -> list[dict[str, Any]]:
    from spikeloom.training.log import RunLog

    lines = [line for line in RunLog(run / "log.jsonl").lines() if line["event"] in ("epoch", "test")]
    return [{name: line[name] for name in _HELD if name in line} for line in lines]


def train(out: Path, epochs: int, resume: bool, store: str | None) -> None:
    """The training that is disturbed, in a process of its own."""
    when = json.loads(os.environ.get(_VARIABLE) or "null")
    if when is not None:
        _arm(when["phase"], when["draw"])
    import torch
    from rich.console import Console

    from spikeloom.training import Augment, Data, Optim, Recipe, TrainingInterrupted, event_batches, fit
    from spikeloom.training.team import FollowedError, LostProcessError, joined

    torch.set_num_threads(1)
    if store is not None:
        event_batches.MAX_CACHE_BYTES = 0  # as of one that is too large to keep its frames
    recipe = Recipe(
        model="conv_snn_tiny",
        data=Data("event_store" if store else "saccade_mnist", root=store, T=2, limit=48, validation=16),
        augment=Augment(shift_px=1),
        optim=Optim(lr=5e-3),
        epochs=epochs,
        batch_size=8,
        ema=0.9,
    )
    try:
        with joined(torch.device("cpu")):
            fit(recipe, out, resume=resume, device="cpu", console=Console(quiet=True))
    except TrainingInterrupted as stop:
        sys.exit(stop.code)
    except (FollowedError, LostProcessError):
        sys.exit(3)


def _arm(phase: str, draw: float) -> None:
    """Prepare the kill."""
    from spikeloom.training import checkpoint, run

    if phase == "read":
        _before(run, "load_train", draw, 1)
    elif phase == "epoch":
        _behind_steps(run, 1 + int(draw * 8))
    elif phase == "write":
        name = ("write_weights", "write_config", "sync")[int(draw * 3)]
        _before(checkpoint, name, draw, 1 + int(draw * 4))
    elif phase == "rename":
        _before(checkpoint.os, "rename", draw, 1 + int(draw * 3))
    elif phase == "delete":
        _half_deleted(checkpoint.shutil, 1 + int(draw * 3))
    elif phase == "evaluate":
        _before(run, "evaluate", draw, 2 + int(draw * 4))
    elif os.fork() == 0:  # a process that waits, and then sends the signal
        time.sleep(2 + 5 * draw)
        os.kill(os.getppid(), signal.SIGTERM if phase == "sigterm" else signal.SIGKILL)
        os._exit(0)


def _before(module: Any, name: str, draw: float, calls: int) -> None:
    """Kill at a call of a function: a tenth of them in front of it, the others a moment later, inside."""
    real, left = getattr(module, name), [calls]

    def call(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and draw < 0.1:
            os.kill(os.getpid(), signal.SIGKILL)
        if left[0] == 0:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + draw * 0.01)
        return real(*given, **named)

    setattr(module, name, call)


def _behind_steps(run: Any, steps: int) -> None:
    real, left = run.train_epoch, [steps]

    def epoch(*given: Any) -> Any:
        for tally in real(*given):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield tally

    run.train_epoch = epoch


def _half_deleted(module: Any, calls: int) -> None:
    """Kill when one file of an old checkpoint is gone."""
    real, left = module.rmtree, [calls]

    def rmtree(path: Any, *given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            next(Path(path).iterdir()).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *given, **named)

    module.rmtree = rmtree


if __name__ == "__main__":
    if len(sys.argv) in (5, 6) and sys.argv[1] == "--train":
        train(Path(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])), sys.argv[5] if len(sys.argv) == 6 else None)
    else:
        sys.exit(main())
