"""What spatial frequencies a Max-Former keeps: `python examples/max_former_frequencies.py`, minutes on two cores.

The Max-Former paper (Fang et al. 2025, arXiv:2505.18608) says that LIF neurons and average pooling lose high
frequencies and that max pooling and depth-wise convolutions keep them. This trains four small networks that differ in
the token mixer alone (none, average pooling, max pooling, depth-wise convolution; T = 4) on the embedded MNIST-5k and
measures. No download, no GPU; the picture needs matplotlib (`pip install 'spikeloom[report]'`). Trained networks are
kept in --runs, so that a second call only measures.

Spectrum of a map, as measured here:
    F = two-dimensional discrete Fourier transform of every map u[t, b, c] (H = W), without window
    P = mean of |F|^2 over T, B, C                     plain mean: channels of large variance count more
    r = sqrt(fx^2 + fy^2), in cycles per pixel of that map: a map of half the size has an axis of its own
    curve: P averaged over the ring round(r H) = k, k = 1 .. H/2, in dB (10 log10) relative to the ring k = 1
    share: the part of the sum of P, without r = 0, that lies above r = 0.25, half of the Nyquist frequency; white noise
           has 0.80, as the corners up to r = 0.71 count
Measured are the membranes u of the stream in front of every stage's block ("in", what the patch embedding gives),
behind its mixer and behind the block ("out"), and their spikes LIF(u), on the test images. The curves are those of
Park & Kim 2022 (arXiv:2202.06709) but for two things: they average the logarithm and begin at r = 0, whose power is
here only the offset that a normalisation adds.

Filters alone, on white Gaussian noise:
    in time   the linear part of LIF, |mean X* S|^2 / mean |X|^2 over neurons, X and S spectra over the time steps of
              input and spikes; the leak v += (x - v) / 2 without threshold, whose |transfer|^2 is 1 / (5 - 4 cos w)
    in space  power of what average and max pooling 3 x 3, stride 1, make of it, and of the spikes of LIF
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.datasets.mnist5k import MNIST5k, Split
from spikeloom.models import create_model, load_model, save_model
from spikeloom.neurons import LIF
from spikeloom.spiking_attention.pool_mixer import pooling

HALF_NYQUIST = 0.25  # cycles per pixel
VARIANTS = {
    "identity": ("no mixer", "#666666"),
    "avg": ("average pooling", "#d55e00"),
    "max": ("max pooling", "#0072b2"),
    "dwc3": ("depth-wise convolution", "#009e73"),
}
"""Mixer of every stage -> its name in the picture, and its colour (Okabe and Ito's, told apart by the colour-blind)."""
STAGES = 3
POINTS = ("in", "mixed", "out")


def power(maps: Tensor) -> Tensor:
    """Mean of |F|^2 over all maps: `[..., H, W]` -> `[H, W]`, by FFT bin, in float64."""
    found: Tensor = torch.fft.fft2(maps.double()).abs().square().flatten(0, -3).mean(0)
    return found


def radius(size: int) -> Tensor:
    """Cycles per pixel of every FFT bin of a map of size x size."""
    f = torch.fft.fftfreq(size, dtype=torch.float64)
    return (f[:, None].square() + f.square()).sqrt()


def rings(spectrum: Tensor) -> tuple[list[float], list[float]]:
    """`[H, H]` -> frequencies k / H in cycles per pixel, and dB relative to the lowest, k = 1 .. H/2."""
    size = spectrum.shape[-1]
    ring = (radius(size) * size).round()
    means = torch.stack([spectrum[ring == k].mean() for k in range(1, size // 2 + 1)])
    return [k / size for k in range(1, size // 2 + 1)], decibel(means / means[0])


def decibel(ratio: Tensor) -> list[float]:
    """10 log10."""
    return [round(10 * math.log10(value), 3) for value in ratio.tolist()]


def share(spectrum: Tensor) -> float:
    """Part of the power above half of the Nyquist frequency, the mean left out; nan: the maps are constant."""
    r = radius(spectrum.shape[-1])
    everything = spectrum[r > 0].sum()
    if everything <= 1e-20 * spectrum.sum():
        return math.nan
    return float(spectrum[r > HALF_NYQUIST].sum() / everything)


def in_time(steps: int = 64, neurons: int = 20_000) -> dict[str, Any]:
    """LIF as a filter along time: cycles per step, and dB relative to the lowest frequency above 0."""
    x = 0.5 + torch.randn(steps, neurons, generator=torch.Generator().manual_seed(0))
    X, S = (torch.fft.rfft(y.double(), dim=0)[1:] for y in (x, LIF()(x)))
    passed = (X.conj() * S).mean(1).abs().square() / X.abs().square().mean(1)
    f = torch.arange(1, len(passed) + 1, dtype=torch.float64) / steps
    leak = 1 / (5 - 4 * torch.cos(2 * math.pi * f))
    everything = S.abs().square().mean(1)
    return {
        "cycles_per_step": f.tolist(),
        "leak without threshold": decibel(leak / leak[0]),
        "spikes, linear part": decibel(passed / passed[0]),
        "spikes, all power": decibel(everything / everything[0]),
    }


def in_space(size: int = 32, maps: int = 500) -> dict[str, Any]:
    """What pooling and LIF make of white noise: rings of every output, and its share above half of Nyquist."""
    x = torch.randn(4, maps, 1, size, size, generator=torch.Generator().manual_seed(0))
    outputs = {"avg": pooling("avg", 1)(x), "max": pooling("max", 1)(x), "lif": LIF()(0.5 + x)}
    return {name: spectrum_of(power(y)) for name, y in outputs.items()}


def spectrum_of(spectrum: Tensor) -> dict[str, Any]:
    """Curve and share; of constant maps, nan."""
    above = share(spectrum)
    frequencies, curve = rings(torch.full_like(spectrum, math.nan) if math.isnan(above) else spectrum)
    return {"cycles_per_pixel": frequencies, "db": curve, "share": round(above, 5)}


def digits(split: Split, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images `[N, 1, 32, 32]`, 28 x 28 with a black margin, normalised; labels `[N]`. A limit takes equally spaced."""
    data = MNIST5k(split)
    kept = len(data) if limit is None else min(limit, len(data))
    chosen = torch.arange(kept) * len(data) // kept
    images = F.pad(data.images[chosen, None].float() / 255, (2, 2, 2, 2))
    return (images - 0.1) / 0.28, data.labels[chosen]


def build(mixer: str, embed: str, width: int) -> nn.Module:
    """The network: three stages of one block, maps of 32, 16 and 8 pixels, width / 4, width / 2 and width channels."""
    return create_model(
        "maxformer_cifar_4_384", in_channels=1, embed_dim=width, depths=(1,) * STAGES,
        embeds=("orig", embed, embed), mixers=(mixer,) * STAGES,
    )  # fmt: skip


def train(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, seed: int, batch: int = 50) -> None:
    """AdamW and one cycle of the learning rate up to 4e-3; cross entropy of the mean logits."""
    images, labels = data
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * math.ceil(len(images) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=order).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]).mean(0), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def trained(mixer: str, seed: int, options: argparse.Namespace) -> nn.Module:
    """A network from --runs, or a new one, which is kept there."""
    name = f"{mixer}_{options.embed}_{options.width}_limit{options.limit}_epochs{options.epochs}_seed{seed}"
    folder = options.runs / name
    if folder.exists():
        return load_model(folder)
    torch.manual_seed(seed)
    model = build(mixer, options.embed, options.width)
    start = time.perf_counter()
    train(model, digits("train", options.limit), options.epochs, seed)
    print(f"{mixer}, seed {seed}: trained in {time.perf_counter() - start:.0f} s", flush=True)
    save_model(model, folder)
    return model


def points(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose output is measured, by name; without a mixer "mixed" is "in"."""
    for s, (embed, blocks) in enumerate(zip(model.embeds, model.stages, strict=True), start=1):
        mixer = blocks[0].mixer
        yield from zip((f"{s} in", f"{s} mixed", f"{s} out"), (embed, mixer or embed, blocks[-1]), strict=True)


@torch.no_grad()
def measure(model: nn.Module, data: tuple[Tensor, Tensor], batch: int = 50) -> dict[str, Any]:
    """Accuracy, and of every point the curve and share of membranes and the share and rate of their spikes."""
    images, labels = data
    sums: dict[str, Tensor] = {}
    rates: dict[str, float] = {}
    now: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, pair, name=name: now.update({name: pair[1]}))
        for name, module in points(model)
    ]
    right = 0
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        right += int((model(x).mean(0).argmax(1) == y).sum())
        for name, u in now.items():
            spikes = LIF()(u)
            both = torch.stack([power(u), power(spikes)]) * len(x) / len(images)
            sums[name] = sums.get(name, torch.zeros_like(both)) + both
            rates[name] = rates.get(name, 0.0) + float(spikes.mean()) * len(x) / len(images)
    for hook in hooks:
        hook.remove()
    found = {
        name: {**spectrum_of(u), "share_of_spikes": round(share(s), 5), "rate": round(rates[name], 5)}
        for name, (u, s) in sums.items()
    }
    return {"accuracy": right / len(images), "points": found}


def draw(results: dict[str, Any], path: Path) -> None:
    """The picture: filters alone, the share by stage, the spectra of every stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.2), layout="constrained")
    (time_axes, space_axes, share_axes), stage_axes = figure.subplots(2, 3)
    draw_filters(results, time_axes, space_axes)
    draw_shares(results, share_axes)
    for s, axes in enumerate(stage_axes, start=1):
        for mixer, (label, colour) in VARIANTS.items():
            for point, style in (("in", ":"), ("out", "-")):
                runs = [run["points"][f"{s} {point}"] for run in results["variants"][mixer]]
                mean = torch.tensor([run["db"] for run in runs]).mean(0)
                line = axes.plot(runs[0]["cycles_per_pixel"], mean, style, color=colour, lw=1.6)[0]
                if point == "out":
                    line.set_label(label)
        side = 2 * len(mean)
        axes.set_title(f"Stage {s}, membranes, {side} × {side}", fontsize=10)
        axes.set_xlabel("cycles per pixel of this map")
    stage_axes[0].set_ylabel("power, dB above lowest ring")
    stage_axes[2].plot([], [], ":", color="black", lw=1.6, label="in front of the block")
    figure.legend(*stage_axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, lw=0.6)
        axes.tick_params(labelsize=9)
    low = min(axes.get_ylim()[0] for axes in stage_axes)
    high = max(axes.get_ylim()[1] for axes in stage_axes)
    for axes in stage_axes:
        axes.set(xlim=(0, None), ylim=(low, high))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, pil_kwargs={"optimize": True})


def draw_filters(results: dict[str, Any], time_axes: Any, space_axes: Any) -> None:
    """LIF in time; pooling and LIF in space."""
    found = results["in_time"]
    styles = {"leak without threshold": ("--", "#888888"), "spikes, linear part": ("-", "black")}
    for name, (style, colour) in {**styles, "spikes, all power": (":", "black")}.items():
        time_axes.plot(found["cycles_per_step"], found[name], style, color=colour, lw=1.6, label=name)
    time_axes.set(xlabel="cycles per time step", ylabel="dB above lowest frequency", ylim=(-15, 2))
    time_axes.set_title("LIF on white noise, along time", fontsize=10)
    labels = {name: VARIANTS[name] for name in ("max", "avg")}
    for name, (label, colour) in {"lif": ("LIF, spikes", "black"), **labels}.items():
        curve = results["in_space"][name]
        space_axes.plot(curve["cycles_per_pixel"], curve["db"], color=colour, lw=1.6, label=label)
    space_axes.set(xlabel="cycles per pixel", xlim=(0, None), ylim=(-26, 2))
    space_axes.set_title("Alone on white noise, in space", fontsize=10)
    for axes in (time_axes, space_axes):
        axes.legend(frameon=False, fontsize=8.5, loc="lower left")


def draw_shares(results: dict[str, Any], axes: Any) -> None:
    """Share of the membranes' power above half of Nyquist at every point; a dot per seed."""
    names = [f"{s} {point}" for s in range(1, STAGES + 1) for point in POINTS]
    for mixer, (_, colour) in VARIANTS.items():
        shares = torch.tensor(
            [[100 * run["points"][name]["share"] for name in names] for run in results["variants"][mixer]]
        )
        for s in range(STAGES):
            at = range(s * len(POINTS), (s + 1) * len(POINTS))
            axes.plot(at, shares.mean(0)[list(at)], color=colour, lw=1.6)
            for seed in shares:
                axes.plot(at, seed[list(at)], ".", color=colour, ms=4)
    axes.set_xticks(range(len(names)), names, rotation=60)
    axes.set_title("Power above half of Nyquist, %", fontsize=10)
    axes.set_ylim(bottom=0)


def table(results: dict[str, Any]) -> str:
    """Shares in percent, mean of the seeds; - where maps are constant."""
    names = [f"{s} {point}" for s in range(1, STAGES + 1) for point in POINTS]
    lines = [f"{'share above half of Nyquist, %':32}" + "".join(f"{name:>9}" for name in names) + " accuracy"]
    for mixer, (label, _) in VARIANTS.items():
        runs = results["variants"][mixer]
        for kind, key in (("u", "share"), ("spikes", "share_of_spikes")):
            means = [sum(run["points"][name][key] for run in runs) / len(runs) for name in names]
            accuracy = sum(run["accuracy"] for run in runs) / len(runs)
            cells = "".join(f"{'-' if math.isnan(mean) else f'{100 * mean:.1f}':>9}" for mean in means)
            lines.append(f"{label + ', ' + kind:32}{cells}{accuracy:9.1%}")
    if any("-" in line.split() for line in lines):
        lines.append("-: constant maps; no neuron in front of them, or on them, fires. Train further: more --epochs.")
    return "\n".join(lines)


def without_nan(value: Any) -> Any:
    """For JSON, which has no nan: None instead."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Spatial frequencies in small Max-Formers with four token mixers.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1, help="networks of each kind")
    parser.add_argument("--width", type=int, default=32, help="channels of the last stage")
    parser.add_argument("--limit", type=int, help="images of training and of testing, for tries")
    parser.add_argument(
        "--embed", default="orig_later", choices=("orig_later", "max", "avg", "one_max"), help="of stages 2 and 3"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/max_former_frequencies"), help="trained networks")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    parser.add_argument("--picture", type=Path, default=Path("max_former_frequencies.png"))
    options = parser.parse_args(given)
    if min(options.epochs, options.seeds) < 1:
        parser.error(f"--epochs {options.epochs} --seeds {options.seeds}: expected at least 1 of each")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit {options.limit}: expected at least 1, or none for all images")
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Train what is not there, measure, draw."""
    options = arguments(given)
    test = digits("test", options.limit)
    results: dict[str, Any] = {
        "settings": {key: getattr(options, key) for key in ("epochs", "seeds", "width", "limit", "embed")},
        "image": spectrum_of(power(test[0])),
        "in_time": in_time(),
        "in_space": in_space(),
        "variants": {
            mixer: [measure(trained(mixer, seed, options), test) for seed in range(options.seeds)] for mixer in VARIANTS
        },
    }
    print(table(results))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(without_nan(results), indent=1) + "\n", encoding="utf-8")
    draw(results, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
