"""What a ResNet-18 loses when it becomes a spiking network: every method of `convert`, by the number of steps.

    python benchmarks/conversion.py --data cifar10 --root FOLDER --allow-partial --out results/conversion_cifar10.json
    python benchmarks/conversion.py --data fashion_mnist --root FOLDER --out results/conversion_fashion_mnist.json
    python benchmarks/conversion.py --root FOLDER --allow-partial --device cpu --limit 512 --epochs 1
        --quantised-epochs 1 --width 4 --batch 64 --steps 4,16 --held-out 100 --calibration 64       does it run?

A ResNet-18 (3x3 stem, no max pool) is trained with ReLU, in bfloat16; from it, for fewer epochs, one QCFS network for
each number of levels of --variants. `--held-out` training images, as many of every class, are kept apart: methods and
thresholds of early exit are chosen on them. Test images are for the figures alone, and every row's are in the JSON.

Rows are accuracies after T steps. COS and SRP look at rho steps before they run: their latency is T + rho. `mse`,
`light` and `advanced` are made for one T, so each T has its network. `qcfs + light` and `+ advanced` correct biases and
initial potentials of a QCFS network. Losses are against the ReLU network (`own`: against the network that was
converted), in points of test accuracy. The fine-tuned row is no conversion any more: its weights were trained through
T steps.

Spiking networks are evaluated in float32 with TF32 products, as the ANNs are; calibration and early exit without TF32.
Targets are for one H100. The JSON is rewritten after every stage. After --budget seconds what has not begun is left out
and the JSON says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _contest import free  # noqa: E402
from _conversion_after import early_exits, energy, tuned  # noqa: E402
from _conversion_nets import ResNet18, quantised  # noqa: E402
from _conversion_rows import Method, best, converted, qcfs_methods, relu_methods, row  # noqa: E402
from _conversion_train import Data, Plan, accuracy, load, products, train  # noqa: E402
from _report import conditions, show, verdicts, write  # noqa: E402
from _timing import failure_text  # noqa: E402

EPOCHS = {"cifar10": (40, 10), "fashion_mnist": (20, 5)}
"""Of the ReLU network, and of each QCFS network."""
LIMITS = {16: 0.5, 4: 2.0}
"""T -> points that may be lost."""
EXIT_T = 16
RESERVE = 35.0
"""Seconds that methods leave for early exit and energy."""
SAVED, LOST = 40.0, 0.2


def _options(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(EPOCHS), default="cifar10")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set's files")
    parser.add_argument("--allow-partial", action="store_true", help="CIFAR-10 with files of fewer images")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--seeds", default="0", help="comma-separated: split, weights and order of the images")
    parser.add_argument("--epochs", type=int, default=0, help="of the ReLU network; 0: 40, Fashion-MNIST 20")
    parser.add_argument("--quantised-epochs", type=int, default=0, help="of a QCFS network; 0: 10, Fashion-MNIST 5")
    parser.add_argument("--tuned-epochs", type=int, default=2, help="of the spiking network at T = 4; 0: none")
    parser.add_argument("--variants", default="4,8,2", help="levels of the QCFS networks; empty: none")
    parser.add_argument("--methods", default="", help="rows, comma-separated, such as qcfs_cos; empty: all")
    parser.add_argument("--steps", default="1,2,4,8,16,32")
    parser.add_argument("--rho", default="2,4", help="look-ahead of COS and SRP")
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument(
        "--calibration", type=int, default=2048, help="images for local threshold balancing (others: <= 512)"
    )
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--limit", type=int, default=0, help="so many training and test images alone; 0: all")
    parser.add_argument("--budget", type=float, default=255.0, help="seconds; 0: no end")
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    for name in ("seeds", "variants", "steps", "rho"):
        try:
            setattr(options, name, [int(n) for n in getattr(options, name).split(",") if n])
        except ValueError:
            parser.error(f"--{name} is {getattr(options, name)!r}; expected whole numbers with commas between them")
    if not options.steps or min(options.steps) < 1:
        parser.error("--steps names no number of steps >= 1")
    known = {_key(m.name) for m in [*relu_methods(options.rho), *qcfs_methods(options.rho)]}
    options.methods = [name for name in options.methods.split(",") if name]
    if wrong := [name for name in options.methods if name not in known]:
        parser.error(f"--methods has {', '.join(wrong)}; expected some of {','.join(sorted(known))}")
    options.epochs = options.epochs or EPOCHS[options.data][0]
    options.quantised_epochs = options.quantised_epochs or EPOCHS[options.data][1]
    return options


def _key(name: str) -> str:
    """A row's name without blanks and commas: `qcfs_cos`, `max_v0`."""
    return name.replace(" = ", "").replace(" + ", "_").replace(", ", "_").replace(" ", "_")


class Run:
    """One seed: the networks, the rows so far, the time."""

    def __init__(self, options: argparse.Namespace, seed: int, begin: float, record: dict[str, Any]) -> None:
        self.options, self.seed, self.begin = options, seed, begin
        self.whole = record
        self.record: dict[str, Any] = {"seed": seed, "networks": {}, "rows": [], "seconds": {}}
        record["runs"].append(self.record)
        self.nets: dict[str, nn.Module] = {}
        self.data: Data

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.begin:6.1f} s] {text}", flush=True)

    def save(self) -> None:
        if self.options.out:
            write(self.options.out, self.whole)

    def stage(self, name: str, run: Callable[[], Any], reserve: float = 0.0) -> Any:
        """Run a stage, unless less than `reserve` seconds are left; what goes wrong is text, and the rest goes on."""
        left = self.options.budget - (time.perf_counter() - self.begin)
        if self.options.budget and left < max(reserve, 0.1):
            self.say(f"{name}: left out, {left:.0f} s are left")
            return {"failure": f"left out after {self.options.budget:.0f} s"}
        begin = time.perf_counter()
        try:
            found = run()
        except Exception as error:  # one method that fails shall not take the others with it
            found = {"failure": failure_text(error)}
            self.say(f"{name}: {found['failure']}")
        free(torch.device(self.options.device))
        self.record["seconds"][name] = time.perf_counter() - begin
        return found

    def methods(self, network: str) -> list[Method]:
        """The rows of a network that were asked for."""
        every = relu_methods(self.options.rho) if network == "relu" else qcfs_methods(self.options.rho)
        return [m for m in every if not self.options.methods or _key(m.name) in self.options.methods]

    # --- stages ----------------------------------------------------------------------------------------------------

    def read(self) -> None:
        options = self.options
        self.data = load(
            *(options.data, options.root, options.allow_partial, options.held_out, options.calibration),
            *(options.limit, self.seed, torch.device(options.device)),
        )
        data = self.data
        self.record["data"] = {"says": data.says, "trained_on": len(data.train[1])}
        self.record["data"] |= {"held_out": len(data.held_out[1]), "tested_on": len(data.test[1])}
        self.say(f"{'; '.join(data.says)}; {len(data.held_out[1])} held out, {len(data.test[1])} to test")

    def ann(self, name: str, make: Callable[[], nn.Module], plan: Plan) -> dict[str, Any]:
        """Train one of the ANNs and keep it."""
        net = make().to(self.options.device)
        found = {"epochs": plan.epochs, "lr": plan.lr, "batch": plan.batch} | train(net, self.data, plan, self.say)
        for part, images in (("held_out", self.data.held_out), ("test", self.data.test)):
            found[part] = accuracy(net, images)
        self.nets[name] = net
        self.say(f"{name}: {found['test']:.2f} % ({found['images_per_second']:.0f} images/s in training)")
        return found

    def rows(self, network: str) -> None:
        """Every method on one of the ANNs."""
        if network not in self.nets:
            return
        for method in self.methods(network):
            name = f"{network}: {method.name}{f', rho {method.rho}' if method.rho else ''}"
            found = self.stage(
                name, lambda m=method: row(m, network, self.nets[network], self.data, self.options.steps), RESERVE
            )
            self.record["rows"].append({"network": network, "method": method.name, "rho": method.rho} | found)
            if "failure" not in found:
                said = " ".join(f"{found['test'][T]:.2f}" for T in self.options.steps if T in found["test"])
                self.say(f"{name}: {said} ({found['seconds']:.1f} s)")
            self.save()

    def choose(self, latency: int, offsets: bool = True, of: str = "") -> dict[str, Any] | None:
        """The row that is best on held-out images, of networks whose names begin with `of`; what it loses on test."""
        cell = best(self.record["rows"], latency, offsets, of)
        if cell is None:
            return None
        found, nets = self.record["rows"][cell["row"]], self.record["networks"]
        test = found["test"][cell["T"]]
        return cell | {
            **{key: found[key] for key in ("network", "method", "rho")},
            **{"latency": latency, "test": test, "lost": nets["relu"]["test"] - test},
            "own": nets[found["network"]]["test"] - test,
        }

    def net(self, cell: dict[str, Any]) -> Any:
        """The network of a chosen row again."""
        found = next(m for m in self.methods(cell["network"]) if (m.name, m.rho) == (cell["method"], cell["rho"]))
        return converted(found, self.nets[cell["network"]], self.data.calibration, cell["T"])


def measure(run: Run) -> None:
    """All stages of one seed."""
    options = run.options
    torch.manual_seed(run.seed)
    run.read()
    channels = run.data.held_out[0].shape[1]
    plan = Plan(options.epochs, options.batch, 0.4 * options.batch / 512, 0.2)
    run.record["networks"]["relu"] = run.stage(
        "relu", lambda: run.ann("relu", lambda: ResNet18(channels, run.data.classes, options.width), plan)
    )
    run.save()
    run.rows("relu")
    after, took = Plan(options.quantised_epochs, options.batch, 0.1 * options.batch / 512, 0.05), 0.0
    for levels in options.variants if "relu" in run.nets else []:
        name, begin = f"qcfs {levels}", time.perf_counter()

        def make(levels: int = levels) -> nn.Module:
            with products(tf32=False):
                return quantised(run.nets["relu"], levels, run.data.calibration[:512])

        run.record["networks"][name] = run.stage(name, lambda n=name, m=make: run.ann(n, m, after), took + 40)
        run.rows(name)
        took = time.perf_counter() - begin
    judge(run)
    run.save()


def judge(run: Run) -> None:
    """The best rows, early exit from one, a fine-tuned one, energy."""
    data, options = run.data, run.options
    plain = {T: run.choose(T, offsets=False) for T in options.steps}
    run.record["best"] = {"plain": plain, "by_latency": {T: run.choose(T) for T in options.steps}}
    run.save()
    exits = list(filter(None, (run.choose(EXIT_T, False), run.choose(EXIT_T, False, "qcfs"))))
    for cell in exits[: 1 if exits[:1] == exits[1:] else 2]:
        name = f"early exit of {cell['network']}: {cell['method']}"
        found = run.stage(name, lambda c=cell: {"choices": early_exits(run.net(c), data, EXIT_T)})
        run.record.setdefault("early_exit", []).append({"of": cell} | found)
        run.save()
    for T in (4, 16):
        if cell := run.choose(T, offsets=False):
            found = run.stage(f"energy at T = {T}", lambda c=cell, T=T: energy(run.net(c), data, T))
            run.record.setdefault("energy", []).append({"of": cell} | found)
    run.save()
    if options.tuned_epochs and (cell := run.choose(4, offsets=False)):
        epochs, batch = options.tuned_epochs, max(1, options.batch // 4)
        found = run.stage("fine-tuning", lambda: tuned(run.net(cell), data, 4, epochs, batch), 30)
        if "failure" not in found:
            found["lost"] = run.record["networks"]["relu"]["test"] - found["after"]["test"]
            run.say(f"fine-tuned at T = 4: {found['before']['test']:.2f} -> {found['after']['test']:.2f} %")
        run.record["tuned"] = {"of": cell} | found
    run.record["targets"] = targets(run.record)


def targets(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wanted, what is there, and whether that is enough."""
    wanted = [
        (f"points lost at T = {T}", (record["best"]["by_latency"].get(T) or {}).get("lost"), limit, False)
        for T, limit in LIMITS.items()
    ]
    if "tuned" in record:
        wanted.append(("points lost at T = 4, fine-tuned", record["tuned"].get("lost"), LIMITS[4], False))
    for found in record.get("early_exit", []):
        name, first = f"early exit of {found['of']['network']}", found.get("choices", [{}])[0]
        wanted += [(f"{name}: steps saved in %", first.get("saved_percent"), SAVED, True)]
        wanted += [(f"{name}: points lost", first.get("lost"), LOST, False)]
    return [
        {"what": what, "value": value, "bound": bound, "at_least": least}
        | {"met": value is not None and (value >= bound if least else value <= bound + 1e-9)}
        for what, value, bound, least in wanted
    ]


def report(record: dict[str, Any], steps: Sequence[int]) -> None:
    """The tables of one seed."""
    nets = {name: found for name, found in record["networks"].items() if "failure" not in found}
    said = "; ".join(f"{name} {found['test']:.2f} %" for name, found in nets.items())
    table = []
    for found in record["rows"]:
        latency = f"T + {found['rho']}" if found["rho"] else "T"
        cells = [f"{found['test'][T]:.2f}" if T in found.get("test", {}) else "" for T in steps]
        table.append([found["network"], found["method"], latency, *cells, found.get("failure", "")])
    print(f"seed {record['seed']}: {said}")
    show("Test accuracy in % after T steps", ["ANN", "method", "latency", *map(str, steps), ""], table)
    chosen = [c for kind in ("plain", "by_latency") for c in record["best"][kind].values() if c]
    table = [
        [str(c["latency"]), c["network"], c["method"], f"{c['T']} + {c['rho']}"]
        + [f"{c[key]:.2f}" for key in ("held_out", "test", "lost", "own")]
        for c in chosen
    ]
    head = ["latency", "ANN", "method", "T + rho", "held out", "test", "lost", "own"]
    show("Best on held-out images (without, with look-ahead)", head, table)
    for found in record.get("early_exit", []):
        for e in found.get("choices", []):
            print(
                f"early exit of {found['of']['network']}, {found['of']['method']}; tolerance {e['tolerance']}, gains "
                f"{e['gains']}: {e['steps']:.2f} of {EXIT_T} steps ({e['saved_percent']:.1f} % fewer), "
                f"{e['fixed']:.2f} -> {e['accuracy']:.2f} %"
            )
    for e in record.get("energy", []):
        if "failure" not in e:
            print(f"T = {e['T']}: rate {e['rate']:.3f}, {e['nanojoules']:.0f} nJ, ANN {e['ann_nanojoules']:.0f} nJ")
    print("\n".join(verdicts([target]) for target in record["targets"]))


def main(given: Sequence[str] | None = None) -> None:
    """Train, convert, measure; print tables; write JSON."""
    options = _options(given)
    begin = time.perf_counter()
    record = conditions(torch.device(options.device), HERE.parent, options.commit)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    record |= {"options": plain | {"root": "", "out": ""}, "runs": []}
    for seed in options.seeds:
        run = Run(options, seed, begin, record)
        with products(tf32=True):
            measure(run)
        report(run.record, options.steps)
        run.record["seconds"]["all"] = time.perf_counter() - begin
        run.save()


if __name__ == "__main__":
    main()
