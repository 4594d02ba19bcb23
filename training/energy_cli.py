"""`spikeloom energy`: what a trained network, a registered model or stored counts cost per inference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from torch import nn

from spikeloom.models import create_model
from spikeloom.models.registry import default_config, is_model
from spikeloom.training import network
from spikeloom.training.checkpoint import load_model, require_checkpoint
from spikeloom.training.energy_count import Work, count_over, make_report, random_frames, recordings, says_of, steps_of
from spikeloom.training.optim_settings import Optim
from spikeloom.training.recipe import Data, Loss, Recipe
from spikeloom.training.run import pick_device
from spikeloom.training.sources import source

if TYPE_CHECKING:
    from spikeloom.energy.models import EnergyModel
    from spikeloom.energy.report import Report
    from spikeloom.energy.totals import Policy

_TYRO = (tyro.conf.FlagCreatePairsOff,)
_RANDOM_SAMPLES, _RANDOM_T = 16, 8
_USAGE = """Energy per inference: exact synaptic operations, and what they cost on several kinds of hardware.

TARGET is a run folder or checkpoint (counts over its test recordings), a folder of `spikeloom convert` (with --images),
the name of a registered model (untrained, on random frames or on --data), or a JSON file of counts or of a report,
which is priced again without a run.

`spikeloom energy models` lists the hardware models; `spikeloom energy diff A.json B.json` compares two runs."""


@dataclass(frozen=True)
class EnergyOptions:
    """What `spikeloom energy TARGET` takes."""

    target: tyro.conf.Positional[str]
    """A run folder, a checkpoint, a converted network, a registered model's name, or a JSON file of counts or of a
    report."""
    images: Path | None = None
    """Of a converted network: its images, a file as for `spikeloom convert`; with a tensor 'labels' [N] in it the
    accuracy is given too."""
    data: str | None = None
    """Data set; None: that of the training, or, for a model's name, random frames."""
    root: str | None = None
    """Folder of the recordings; None: where they were in training."""
    part: Literal["test", "train", "validation"] = "test"
    """Which recordings: the test part, the training part, or what was held out of that."""
    samples: int | None = None
    """Count so many samples, spread evenly over the part; None: all (16 random ones)."""
    T: int | None = None
    """Time steps; None: as in training or conversion (for a model's name, what it is built for, or 8)."""
    crop: int | None = None
    """Use so many pixels of height and width, in the middle; None: as in training (for a model's name, all)."""
    shape: tuple[int, ...] | None = None
    """Random frames: their shape C H W; None: what the model's configuration says."""
    density: float = 0.05
    """Random frames: probability that a pixel is 1 in a time step."""
    seed: int = 0
    """Random frames: their seed, and that of the untrained weights."""
    models: str | None = None
    """Hardware models, separated by commas; the first one makes the headline. `spikeloom energy models` lists them."""
    models_file: str | None = None
    """A TOML file with hardware models of your own; name them in --models."""
    integers: Literal["unit", "mac", "graded"] = "unit"
    """Integer spikes into weights: an AC per unit, a MAC per synaptic operation, or graded events."""
    bn: Literal["fold", "count"] = "fold"
    """Batch normalisation: folded into the layer in front where it can be, or all charged."""
    bias: bool = False
    """Add bias additions to the ACs."""
    static_once: bool = False
    """Charge a layer whose input never changes over time once, not at every step."""
    strict: bool = False
    """Fail at an operation without a counting rule, instead of listing it."""
    html: str | None = None
    """Write a page with pictures to this file."""
    json: str | None = None
    """Write counts and prices to this file; it can be priced again and compared."""
    csv: str | None = None
    """Write a line per layer to this file (per layer and step with --csv-steps)."""
    csv_steps: bool = False
    """A line per layer and time step in --csv."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""
    batch_size: int | None = None
    """Samples per pass; None: as in training (16). Counts do not depend on it."""

    def __post_init__(self) -> None:
        for name in ("samples", "T", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; expected >= 1.")
        if not 0 <= self.density <= 1:
            raise ValueError(f"--density is {self.density}; expected a probability, 0 to 1.")


@dataclass(frozen=True)
class DiffOptions:
    """Compare two stored runs; exit code 1 if the second one costs more than the tolerance allows."""

    before: tyro.conf.Positional[str]
    """JSON of counts or of a report."""
    after: tyro.conf.Positional[str]
    """The one to judge."""
    tolerance: float = 0.05
    """By which fraction the synaptic operations per inference may rise."""


def energy(argv: list[str]) -> int:
    """`spikeloom energy ...`: count, price, report; returns the exit code."""
    if not argv:
        Console(stderr=True, highlight=False).print(escape(f"usage: spikeloom energy TARGET [OPTIONS]\n\n{_USAGE}"))
        return 2
    if argv[0] == "models":
        return models(argv[1:])
    if argv[0] == "diff":
        return diff(argv[1:])
    options = tyro.cli(EnergyOptions, args=argv, prog="spikeloom energy", description=_USAGE, config=_TYRO)
    console = Console(highlight=False)
    report = report_of(options, console)
    report.print(console)
    write_files(report, options, console)
    return 0


def models(argv: list[str]) -> int:
    """`spikeloom energy models`: the hardware models, with their constants and where these come from."""
    from spikeloom.energy.models import get_model, list_models
    from spikeloom.energy.sections import models_table

    @dataclass(frozen=True)
    class ModelsOptions:
        """Hardware models: what an operation costs, in pJ, who says so, and how it is known."""

        pattern: tyro.conf.Positional[str] = "*"
        """Only names that match, such as "horowitz*"."""
        models_file: str | None = None
        """A TOML file with models of your own, listed too."""

    options = tyro.cli(ModelsOptions, args=argv, prog="spikeloom energy models", config=_TYRO)
    _load_file(options.models_file)
    names = list_models(options.pattern)
    if not names:
        raise ValueError(f"No hardware model matches {options.pattern!r}; there are {', '.join(list_models())}.")
    Console(highlight=False).print(models_table([get_model(name) for name in names]))
    return 0


def diff(argv: list[str]) -> int:
    """`spikeloom energy diff A.json B.json`: 0 if B does not cost more than the tolerance allows, else 1."""
    from spikeloom.energy.diff import check
    from spikeloom.energy.store import load

    options = tyro.cli(DiffOptions, args=argv, prog="spikeloom energy diff", config=_TYRO)
    found = check(load(options.before), load(options.after), options.tolerance)
    Console(highlight=False).print(found)
    return 0 if found.passed else 1


def report_of(options: EnergyOptions, console: Console) -> Report:
    """The report that the options ask for."""
    from spikeloom.conversion.files import is_converted
    from spikeloom.energy.report import Report

    _load_file(options.models_file)
    policy, priced = policy_of(options), models_of(options)
    _check_early(options, policy, priced)
    path = Path(options.target)
    if path.name.endswith((".json", ".json.gz")) and path.is_file():
        unfit = ("data", "root", "samples", "T", "crop", "shape", "batch_size", "images")
        _refuse(options, unfit, "holds finished counts, which {} cannot change. Leave it out, or count again.")
        return Report.load(path, policy=policy, models=priced)
    if is_converted(path) and not is_model(options.target):
        return _converted_report(options, console, policy=policy, models=priced)
    _refuse(options, ("images",), "is no folder of `spikeloom convert`; {} is for these alone. Pass --data, --root.")
    found = _checkpoint_work(options) if _is_checkpoint(options.target) else _model_work(options)
    counted = count_over(found, console)
    return make_report(counted, str(found.setting["network"]), policy=policy, models=priced)


def policy_of(options: EnergyOptions) -> Policy:
    """The policy that the flags spell."""
    from spikeloom.energy.totals import Policy

    return Policy(options.integers, options.bn, options.bias, options.static_once)


def models_of(options: EnergyOptions) -> list[EnergyModel] | None:
    """The hardware models of --models; None: the default ones."""
    from spikeloom.energy.models import get_model

    if options.models is None:
        return None
    names = [name.strip() for name in options.models.split(",") if name.strip()]
    if not names:
        raise ValueError("--models names nothing; expected names separated by commas, as in --models horowitz45_fp32.")
    return [get_model(name) for name in names]


def write_files(report: Report, options: EnergyOptions, console: Console) -> None:
    """Write the files that were asked for."""
    written = []
    if options.json is not None:
        written.append(report.to_json(options.json))
    if options.csv is not None:
        written.append(report.to_csv(options.csv, steps=options.csv_steps))
    if options.html is not None:
        written.append(report.to_html(options.html))
    for path in written:
        console.print(f"written: {escape(str(path))}", soft_wrap=True)


def _checkpoint_work(options: EnergyOptions) -> Work:
    """A trained network on recordings."""
    path = require_checkpoint(Path(options.target))
    model, description = load_model(path, options.T)
    if description.recipe.task == "language":
        raise ValueError(
            f"{path} is a language model; its operations are counted in Python, over text: docs/models/spikegpt.md."
        )
    if description.recipe.task != "classify":
        raise ValueError(
            f"{path} is a pre-training by reconstruction, which has no classifier and never runs in inference. "
            f"Fine-tune from it (spikeloom train RECIPE --init {path}) and count on that run."
        )
    recipe = _changed(description.recipe, options)
    device = pick_device(options.device)
    batches = recordings(recipe, options.part, options.samples, device, description)
    setting = {
        "network": f"{description.model}, {path.parent.name}",
        "model": description.model,
        "checkpoint": str(path),
        "data": says_of(recipe.data, options.part),
        "input": "recordings",
        "unit": source(recipe.data).unit,
    }
    model = model.to(device).to(memory_format=torch.channels_last)
    bf16, T, readout = recipe.bf16, steps_of(recipe), recipe.loss.name
    return Work(model, batches.in_order(), batches.recordings, device, bf16, options.strict, setting, T, readout)


def _model_work(options: EnergyOptions) -> Work:
    """An untrained network on random frames, or on recordings."""
    if not is_model(options.target) and (
        "/" in options.target or Path(options.target).suffix or Path(options.target).exists()
    ):
        raise FileNotFoundError(
            f"{options.target} is no run folder, checkpoint or JSON file of counts; expected one of these or the "
            "name of a registered model."
        )
    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    setting = {"model": options.target, "weights": f"untrained, seed {options.seed}"}
    own = getattr(default_config(options.target), "T", None)
    T = options.T or own or _RANDOM_T
    if options.data is not None:
        loss, optim = _for_model(options.target)
        recipe = Recipe(model=options.target, data=Data(options.data, T=T), loss=loss, optim=optim)
        recipe = _changed(recipe, options)
        model = network.build(recipe, source(recipe.data).num_classes).to(device)
        batches = recordings(recipe, options.part, options.samples, device)
        setting |= {
            "network": f"{options.target}, untrained",
            "data": says_of(recipe.data, options.part),
            "input": "recordings",
            "unit": source(recipe.data).unit,
        }
        steps, batched = steps_of(recipe), batches.in_order()
        return Work(model, batched, batches.recordings, device, False, options.strict, setting, steps, loss.name)
    overrides: dict[str, Any] = {} if own is None else {"T": T}
    if hasattr(default_config(options.target), "tail"):
        overrides["tail"] = "none"  # the counter wants as many steps behind a layer as in front of it
    model = create_model(options.target, **overrides).to(device)
    samples = options.samples or _RANDOM_SAMPLES
    shape = options.shape or _input_shape(model, options.target)
    frames = random_frames(shape, T, samples, options.batch_size or 16, options.density, options.seed, device)
    says = f"random input: each pixel of {' x '.join(map(str, shape))} is 1 with probability {options.density:g}"
    setting |= {"network": f"{options.target}, untrained, random input", "data": says, "input": "random"}
    return Work(model, frames, samples, device, False, options.strict, setting)


def _converted_report(options: EnergyOptions, console: Console, **priced: Any) -> Report:
    """A network that `spikeloom convert` wrote, on images of a file."""
    from spikeloom.conversion.shown import show

    unfit = ("data", "root", "crop", "shape")
    _refuse(options, unfit, "is a converted network; it is shown what --images holds. Leave out {}.")
    shown = show(Path(options.target), options.images, options.T, options.samples)
    device, net = pick_device(options.device), shown.net
    ahead = f", {net.latency - net.T} more to look ahead" if net.latency > net.T else ""
    setting = {
        "network": f"{Path(options.target).resolve().name}, converted by {net.config.method}",
        "model": "converted network",
        "converted": f"{net.config.method}, T = {net.T}{ahead}; calibrated on {net.report.calibrated} images",
        "checkpoint": options.target,
        "data": shown.says,
        "input": "images",
        "unit": "images",
    }
    if ahead:
        setting["look_ahead"] = str(net.latency - net.T)
    batches, count = shown.batches(options.batch_size or 16, device), len(shown.images)
    work = Work(net.to(device), batches, count, device, False, options.strict, setting, shown.steps)
    counted = count_over(work, console)
    if counted.correct is not None:  # the answer is that of the first T steps, whatever the layers see besides
        counted.correct[net.T :] = [counted.correct[net.T - 1]] * (shown.steps - net.T)
    return make_report(counted, setting["network"], **priced).renamed(shown.names())


def _for_model(name: str) -> tuple[Loss, Optim]:
    """What a recipe with that model has to have, though nothing is trained."""
    readout = getattr(default_config(name), "readout", None)
    return (Loss(), Optim()) if readout is None else (Loss(readout), Optim(schedule="delays"))


def _changed(recipe: Recipe, options: EnergyOptions) -> Recipe:
    """The recipe with the data and batch size of the flags."""
    changes: dict[str, Any] = {"name": options.data, "root": options.root, "T": options.T, "crop": options.crop}
    data = replace(recipe.data, **{name: value for name, value in changes.items() if value is not None})
    return replace(recipe, data=data, batch_size=options.batch_size or recipe.batch_size)


def _input_shape(model: nn.Module, name: str) -> tuple[int, ...]:
    """(C, H, W), or (channels,) of sequences, by the model's configuration.

    Raises:
        ValueError: it does not say.
    """
    config = getattr(model, "config", None)
    if hasattr(config, "vocab_size"):
        raise ValueError(
            f"{name} reads token ids, and random frames are none. Count it from Python, on ids of a text: "
            "`with spikeloom.energy.count(model, strict=True) as run: model(ids)`, then `run.counts()`."
        )
    if config is not None and hasattr(config, "in_features"):
        return (int(config.in_features),)
    channels, size = getattr(config, "in_channels", None), getattr(config, "input_size", None)
    if channels is None or size is None:
        raise ValueError(f"The configuration of {name} does not say what frames it takes. Pass --shape C H W.")
    return (int(channels), *(size if isinstance(size, tuple) else (size, size)))


def _is_checkpoint(target: str) -> bool:
    return Path(target).exists() and not is_model(target)


def _refuse(options: EnergyOptions, names: tuple[str, ...], says: str) -> None:
    """Raise for flags that do not belong to a target; `says` has a place for them."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    if given:
        raise ValueError(f"{options.target} {says.format(', '.join(given))}")


def _check_early(options: EnergyOptions, policy: Policy, priced: list[EnergyModel] | None) -> None:
    """Fail before a long count at what would fail after it."""
    from spikeloom.energy.html import require_jinja2
    from spikeloom.energy.models import get_model
    from spikeloom.energy.pricing import DEFAULT_MODEL, check_policy
    from spikeloom.energy.store import check_writable

    if options.html is not None:
        require_jinja2()
    targets = [target for target in (options.html, options.json, options.csv) if target is not None]
    for target in targets:
        check_writable(target)
    if len({Path(target).absolute() for target in targets}) < len(targets):
        raise ValueError("--html, --json and --csv name the same file twice; expected one each.")
    check_policy(priced[0] if priced else get_model(DEFAULT_MODEL), policy)


def _load_file(path: str | None) -> None:
    from spikeloom.energy.model_file import load_models

    if path is not None:
        load_models(path)
