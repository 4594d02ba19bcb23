"""Spike-driven Transformer: its attention, its MLP, and whole models.

Ours hold a neuron behind the addition in front of it, so a neuron's official name and ours differ by a layer.
"""

from __future__ import annotations

from spikeloom_tests.golden.attention.rebuilt import File, Rebuilt, loaded, owner
from spikeloom_tests.golden.attention.whole import call, whole
from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention import SDSA, MembraneMLP


class Alone(nn.Module):
    """A layer on its own: the neuron in front of it, the layer, no neuron behind it; the stream in, the stream out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.lif = LIF()
        self.layer = layer

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.layer(self.lif(u), u)[1]
        return out


def alone(file: File, layer: nn.Module, neurons: dict[str, str]) -> Rebuilt:
    """One layer; `neurons` are the names of its neurons, the official ones and ours."""
    own = owner(loaded(layer, file, "sdt"), "sdt")
    return Rebuilt(Alone(layer), lambda key: f"layer.{own(key)}", neurons.__getitem__)


def sdsa(file: File) -> Rebuilt:
    """The attention, with or without the pooling for event cameras."""
    config = file.config
    names = {f"{part}_lif": f"layer.{part}.fire" for part in "qkv"}
    return alone(
        file,
        SDSA(config["dim"], config["num_heads"], dvs=config["dvs"], last=True),
        {"shortcut_lif": "lif", "talking_heads_lif": "layer.attn_lif", **names},
    )


def mlp(file: File) -> Rebuilt:
    """The MLP."""
    config = file.config
    layer = MembraneMLP(config["in_features"], config["hidden_features"], last=True)
    return alone(file, layer, {"fc1_lif": "lif", "fc2_lif": "layer.fc1.fire"})


def sdt(file: File) -> Rebuilt:
    """A whole model; with TET the official output keeps the time axis."""
    built = whole(file, "sdt")

    def run(module: nn.Module, x: Tensor) -> Tensor:
        logits: Tensor = module(x.transpose(0, 1) if x.ndim == 5 else x)
        return logits

    return Rebuilt(built.module, built.own, neuron, run if file.config.get("TET", False) else call)


def neuron(name: str) -> str:
    """Our module that fires the spikes of an official neuron."""
    *path, last = name.split(".")
    if path[:1] != ["block"]:
        stem = {f"proj_lif{i or ''}": f"stem.stages.{i}.fire" for i in range(3)}
        return {**stem, "proj_lif3": "stem.embed_lif", "head_lif": "head_lif"}[last]
    i = int(path[1])
    before = f"blocks.{i - 1}.mlp.fc2.fire" if i else "stem.rpe.fire"
    own = {
        "shortcut_lif": before,
        "talking_heads_lif": f"blocks.{i}.attn.attn_lif",
        "fc1_lif": f"blocks.{i}.attn.proj.fire",
        "fc2_lif": f"blocks.{i}.mlp.fc1.fire",
    }
    return own.get(last) or f"blocks.{i}.attn.{last.removesuffix('_lif')}.fire"


CASES = {"sdsa_v1": sdsa, "sdt_v1_mlp": mlp, "sdt_v1_cifar": sdt, "sdt_v1_dvs": sdt}
