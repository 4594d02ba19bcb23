"""What delays a network learns, and what they do: `python examples/delays_of_a_network.py`, a minute on one core.

Trains the recipe `delays_manifolds` (synapses with one weight and one delay each; ten classes, in which every input
fires once and only the times tell), or takes a run of `spikeloom train` (--run FOLDER), and draws one picture:

    delays    of every layer: at the start, learned (real numbers), and as whole numbers, which the network is used with
    a sample  input spikes, spikes of the hidden layers, membranes of the output by class, with the decision
    events    for one hidden neuron of the first layer: every input spike, the delay of its synapse, and when it arrives

An element at position P has the delay K // 2 - P steps. The share of synapses is per step of delay, so that fine bins
(of learned delays) and whole numbers (of rounded ones) have one scale. The neuron shown is the one that, when it fires
in this sample, is reached in that very step by most input spikes with positive weights: a clear case, not a typical
one. The table has the mean move |learned - start| of the delays of every layer, the mean change by rounding, and the
accuracy of the trained network with the delays of the start, rounded, in place of its own.

No download, no GPU; the picture needs matplotlib (`pip install 'spikeloom[report]'`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.models.delay_readout import read_out
from spikeloom.models.delay_snn import DelaySNN
from spikeloom.synapses import NormNeuron
from spikeloom.training import network
from spikeloom.training.checkpoint import load_model
from spikeloom.training.data import batches_of, load_test, load_train, outputs_of
from spikeloom.training.loop import evaluate, start, train_epoch
from spikeloom.training.recipe import Recipe
from spikeloom.training.recipes import get_recipe

CPU = torch.device("cpu")
GREY, BLUE, ORANGE, BLACK = "#b0b0b0", "#0072b2", "#d55e00", "black"
"""Okabe and Ito's, told apart by the colour-blind."""
BINS_PER_STEP = 2


@dataclass
class Trained:
    """A network, its recipe, and the delays [elements] of every layer, in steps.

    learned: before they were rounded; None: the run was saved with whole numbers.
    """

    model: DelaySNN
    recipe: Recipe
    start: list[Tensor]
    learned: list[Tensor] | None
    rounded: list[Tensor]


@dataclass
class Sample:
    """One recording in the network with whole delays, [T', N]; currents: of the first layer's neurons."""

    label: int
    decision: int
    input: Tensor
    spikes: list[Tensor]
    currents: Tensor
    outputs: Tensor


def delays_of(model: DelaySNN) -> list[Tensor]:
    """The delays of every layer as they are, real numbers."""
    return [(layer.size[0] // 2 - layer.P.detach()[0]).flatten().clone() for layer in model.delayed()]


def rounded_delays(model: DelaySNN) -> list[Tensor]:
    """The same as whole numbers."""
    return [layer.delays().flatten().float() for layer in model.delayed()]


def fresh(recipe: Recipe) -> DelaySNN:
    """The network as a training by this recipe starts."""
    torch.manual_seed(recipe.seed)
    model = network.build(recipe, outputs_of(recipe.data))
    if not isinstance(model, DelaySNN) or model.config.delays != "learned":
        raise ValueError(f"{recipe.model} {recipe.model_args} has no learned delays; take a run of a recipe delays_*.")
    return model


def train(recipe: Recipe) -> Trained:
    """Train, and keep the delays of the start and of the last epoch in which they were learned."""
    model = fresh(recipe)
    begun = delays_of(model)
    data, _ = load_train(recipe.data)
    training = start(recipe, model, CPU)
    batches = batches_of(data, recipe.data, recipe.batch_size, CPU, recipe.augment)
    clock = time.perf_counter()
    for epoch in range(recipe.epochs):
        if epoch == recipe.epochs - recipe.optim.whole_epochs:
            learned = delays_of(model)
        for _ in train_epoch(training, batches):
            pass
    if recipe.optim.whole_epochs == 0:
        learned = delays_of(model)
    print(f"trained for {recipe.epochs} epochs in {time.perf_counter() - clock:.0f} s", flush=True)
    return Trained(model, recipe, begun, learned, rounded_delays(model))


def loaded(folder: Path) -> Trained:
    """A run of `spikeloom train`; its start is drawn again from its seed."""
    model, description = load_model(folder)
    begun = delays_of(fresh(description.recipe))
    assert isinstance(model, DelaySNN)
    learned = delays_of(model)
    whole = all(bool((delays == delays.round()).all()) for delays in learned)
    return Trained(model, description.recipe, begun, None if whole else learned, rounded_delays(model))


@torch.no_grad()
def accuracies(found: Trained) -> tuple[float, float]:
    """On the test part, with whole delays: those of the network, and those of the start in their place."""
    model, recipe = found.model, found.recipe
    batches = batches_of(load_test(recipe.data), recipe.data, recipe.batch_size, CPU)
    with_its_own = evaluate(model, batches, recipe, CPU).accuracy
    kept = [layer.P.detach().clone() for layer in model.delayed()]
    for layer, delays in zip(model.delayed(), found.start, strict=True):
        layer.P.copy_(layer.size[0] // 2 - delays.view_as(layer.P))
    put_back = evaluate(model, batches, recipe, CPU).accuracy
    for layer, P in zip(model.delayed(), kept, strict=True):
        layer.P.copy_(P)
    return with_its_own, put_back


@torch.no_grad()
def run_sample(found: Trained, index: int) -> Sample:
    """Test recording `index` in the network with whole delays."""
    model, recipe = found.model, found.recipe
    data = load_test(recipe.data).select(torch.tensor([index]))
    x, label = next(iter(batches_of(data, recipe.data, 1, CPU).in_order()))
    spikes: list[Tensor] = []
    currents: list[Tensor] = []
    handles = [
        *(block.register_forward_hook(lambda _, __, y: spikes.append(y[:, 0])) for block in model.blocks),
        model.blocks[0].fire.register_forward_pre_hook(lambda fire, given: currents.append(current(fire, given[0]))),
    ]
    with model.rounded():
        outputs = model(x)
    for handle in handles:
        handle.remove()
    decision = int(read_out(outputs, recipe.loss.name).argmax())
    return Sample(int(label), decision, x[:, 0], spikes, currents[0][:, 0], outputs[:, 0])


def current(fire: torch.nn.Module, y: Tensor) -> Tensor:
    """What the neurons get of the synapses' output [T, B, N]: normalised, if there is a normalisation."""
    if not isinstance(fire, NormNeuron):
        return y
    running = fire.running_mean, fire.running_var
    return F.batch_norm(y.flatten(0, 1), *running, fire.weight, fire.bias, eps=fire.eps).view_as(y)


@dataclass
class Events:
    """Input spikes of one neuron, one entry per element with a spike: channel, time, delay, weight. fired: its step."""

    neuron: int
    fired: int
    channel: Tensor
    sent: Tensor
    delay: Tensor
    weight: Tensor

    @property
    def arrives(self) -> Tensor:
        """Steps."""
        return self.sent + self.delay

    @property
    def meeting(self) -> Tensor:
        """Positive weights that arrive in the step in which the neuron fires."""
        return self.weight[(self.arrives == self.fired) & (self.weight > 0)]


def events_of(model: DelaySNN, sample: Sample) -> Events | None:
    """Those of the neuron and its spike in whose step most arrive, with the largest sum; None: the layer is silent."""
    layer = model.delayed()[0]
    sent, channel = sample.input.nonzero().T
    delays, weights = layer.delays(), layer.weight.detach()  # [O, I, c]

    def of(fired: int, neuron: int) -> Events:
        count = delays.shape[2]
        delay, weight = (table[neuron, channel].flatten() for table in (delays, weights))
        each = channel.repeat_interleave(count), sent.repeat_interleave(count)
        return Events(neuron, fired, *each, delay, weight)

    found = [of(fired, neuron) for fired, neuron in sample.spikes[0].nonzero().tolist()]
    return max(found, key=lambda events: (len(events.meeting), float(events.meeting.sum())), default=None)


def numbers(found: Trained, sample: Sample) -> dict[str, Any]:
    """What the table says, for JSON: means over the synapses of a layer, in steps."""
    learned = found.rounded if found.learned is None else found.learned
    layers = []
    for begun, after, whole in zip(found.start, learned, found.rounded, strict=True):
        layers.append(
            {
                "synapses": len(begun),
                "move": float((after - begun).abs().mean()),
                "moved_by_a_step": float(((after - begun).abs() >= 1).double().mean()),
                "rounding": None if found.learned is None else float((whole - after).abs().mean()),
                "mean_delay": [float(begun.mean()), float(after.mean())],
                "at_ends": [float(((d <= 0) | (d >= _longest(found))).double().mean()) for d in (begun, after)],
            }
        )
    events = events_of(found.model, sample)
    shown = (
        None if events is None else {"neuron": events.neuron, "fired": events.fired, "together": len(events.meeting)}
    )
    settings = {"model": found.recipe.model, "epochs": found.recipe.epochs, "seed": found.recipe.seed}
    decided = {"label": sample.label, "decision": sample.decision}
    own, put_back = accuracies(found)
    measured = {"accuracy": own, "accuracy_with_start_delays": put_back}
    return {"settings": settings, **measured, "sample": decided, "events": shown, "layers": layers}


def _longest(found: Trained) -> int:
    return found.model.delayed()[0].size[0] - 1


def table(results: dict[str, Any]) -> str:
    """The same in lines."""
    lines = [f"{'layer':10} synapses  mean move, steps  moved a step or more  by rounding  at the ends: start, learned"]
    for name, layer in zip(_names(len(results["layers"])), results["layers"], strict=True):
        rounding = "-" if layer["rounding"] is None else f"{layer['rounding']:.2f}"
        ends = ", ".join(f"{share:.0%}" for share in layer["at_ends"])
        moved = f"{layer['move']:18.2f}{layer['moved_by_a_step']:22.0%}"
        lines.append(f"{name:10}{layer['synapses']:9,}{moved}{rounding:>13}  {ends}")
    sample = results["sample"]
    put_back = f"with those of the start put back {results['accuracy_with_start_delays']:.1%}"
    lines.append(f"test accuracy with whole delays {results['accuracy']:.1%}, {put_back}")
    lines.append(f"the sample is of class {sample['label']}, the decision {sample['decision']}")
    return "\n".join(lines)


def _names(layers: int) -> list[str]:
    return [*(f"hidden {n}" for n in range(1, layers)), "output"]


def draw(found: Trained, sample: Sample, path: Path) -> None:
    """The picture."""
    from matplotlib.figure import Figure

    layers = len(found.start)
    figure = Figure(figsize=(9, 8.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.4))
    histograms = top.subplots(1, layers, sharey=True)
    for axes, name, *delays in zip(
        histograms, _names(layers), found.start, found.learned or found.start, found.rounded, strict=True
    ):
        draw_delays(axes, delays, found.learned is not None, _longest(found))
        axes.set_title(f"Delays, {name}: {len(delays[0]):,} synapses", fontsize=10)
        axes.set_xlabel("delay, steps")
    histograms[0].set_ylabel("share of synapses per step")
    histograms[0].legend(frameon=False, fontsize=8.5, loc="upper right")
    left, right = bottom.subfigures(1, 2)
    rasters = left.subplots(layers + 1, 1, sharex=True, height_ratios=(1, *[1.6] * (layers - 1), 1.6))
    draw_sample(rasters, sample)
    draw_events(right.subplots(2, 1, sharex=True, height_ratios=(2.6, 1)), found.model, sample)
    for axes in [*histograms, *left.axes, *right.axes]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, pil_kwargs={"optimize": True})


def draw_delays(axes: Any, delays: Sequence[Tensor], learned: bool, longest: int) -> None:
    """One layer: start, learned (if it is known), rounded."""
    begun, after, whole = delays
    edges = (torch.arange((longest + 1) * BINS_PER_STEP + 1) - 0.5 * BINS_PER_STEP + 0.5) / BINS_PER_STEP - 0.25
    scale = BINS_PER_STEP / len(begun)
    counts = torch.histogram(begun.clamp(0, longest), edges).hist
    axes.stairs(counts * scale, edges, color=GREY, fill=True, label="at the start")
    if learned:
        counts = torch.histogram(after.clamp(0, longest), edges).hist
        axes.stairs(counts * scale, edges, color=BLUE, lw=1.4, label="learned")
    shares = torch.bincount(whole.long(), minlength=longest + 1) / len(whole)
    axes.plot(range(longest + 1), shares, "o", ms=3.5, color=ORANGE, label="whole numbers")
    axes.set_xlim(-1, longest + 1)


def draw_sample(rows: Sequence[Any], sample: Sample) -> None:
    """Rasters and membranes; one axis of time."""
    names = ["input", *_names(len(sample.spikes) + 1)[:-1]]
    for axes, name, spikes in zip(rows[:-1], names, [sample.input, *sample.spikes], strict=True):
        step, neuron = spikes.nonzero().T
        axes.plot(step, neuron, "|" if name != "input" else ".", ms=4, color=BLACK)
        axes.set(ylabel=name, ylim=(-1, spikes.shape[1]))
    axes = rows[-1]
    for membrane in sample.outputs.T:
        axes.plot(membrane, color=GREY, lw=0.8)
    axes.plot(sample.outputs[:, sample.decision], color=BLUE, lw=1.8, label=f"class {sample.decision}, the decision")
    if sample.label != sample.decision:
        axes.plot(sample.outputs[:, sample.label], "--", color=ORANGE, lw=1.8, label=f"class {sample.label}, the label")
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    axes.set(ylabel="membranes", xlabel="step", xlim=(-1, len(sample.outputs)))
    right = "right" if sample.label == sample.decision else "wrong"
    rows[0].set_title(f"A test sample of class {sample.label}, decided {right}", fontsize=10)


def draw_events(pair: Sequence[Any], model: DelaySNN, sample: Sample) -> None:
    """Sent, delayed, arrived: one line per input spike; below, the current that this makes."""
    above, below = pair
    events = events_of(model, sample)
    if events is None:
        above.set_title("No neuron of hidden 1 fires for this sample", fontsize=10)
        return
    above.axvspan(events.fired - 0.5, events.fired + 0.5, color="#f0e442", alpha=0.6, lw=0)
    above.plot(events.sent, events.channel, ".", color=BLACK, ms=6, label="input spike")
    size = 70 * events.weight.abs() / events.weight.abs().max()
    for positive, colour, marker, name in ((True, BLUE, "^", "weight > 0"), (False, ORANGE, "v", "weight < 0")):
        mine = (events.weight > 0) == positive
        sent, channel, arrives = (values[mine] for values in (events.sent, events.channel, events.arrives))
        above.hlines(channel, sent, arrives, color=colour, lw=0.8)
        above.scatter(arrives, channel, size[mine], colour, marker=marker, label=f"arrives, {name}", zorder=3)
    above.set(ylabel="input channel", ylim=(-1, sample.input.shape[1] + 2.5))
    above.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper center", columnspacing=0.8, handletextpad=0.2)
    title = f"Neuron {events.neuron}, hidden 1: {len(events.meeting)} positive inputs meet in step {events.fired}"
    above.set_title(title, fontsize=10)
    below.axvspan(events.fired - 0.5, events.fired + 0.5, color="#f0e442", alpha=0.6, lw=0)
    below.plot(sample.currents[:, events.neuron], color=BLACK, lw=1.4)
    below.axhline(model.config.v_threshold, color=GREY, lw=1, ls="--", label="threshold")
    below.legend(frameon=False, fontsize=8.5, loc="upper right")
    below.set(ylabel="current", xlabel="step", xlim=(-1, len(sample.currents)))


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Learned delays of a network, and what they do.")
    parser.add_argument("--run", type=Path, help="folder of a `spikeloom train delays_*`; none: train here")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=0, help="number of the test recording")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    parser.add_argument("--picture", type=Path, default=Path("delays.png"))
    options = parser.parse_args(given)
    if options.epochs < 2 or options.sample < 0:
        parser.error(f"--epochs {options.epochs} --sample {options.sample}: expected at least 2, and 0 or more")
    return options


def recipe_of(options: argparse.Namespace) -> Recipe:
    """`delays_manifolds`; in a short training delays are whole numbers in as large a part of it."""
    recipe = get_recipe("delays_manifolds")
    whole = round(recipe.optim.whole_epochs * options.epochs / recipe.epochs)
    optim = replace(recipe.optim, whole_epochs=whole)
    return replace(recipe, epochs=options.epochs, seed=options.seed, optim=optim)


def main(given: Sequence[str] | None = None) -> int:
    """Train or load, measure, draw."""
    options = arguments(given)
    found = train(recipe_of(options)) if options.run is None else loaded(options.run)
    sample = run_sample(found, options.sample)
    results = numbers(found, sample)
    print(table(results))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(found, sample, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
