"""Checkpoints of DIET-SNN's official code: `diet_from_official("VGG16", state_dict, T=5)` builds the network they fit.

Official entries, with i the number of a module and l that of a layer of neurons: `features.{i}.weight`,
`classifier.{i}.weight`, `threshold.t{l}`, `leak.l{l}`. Every convolution and hidden linear layer takes three numbers
(itself, ReLU, dropout or pool); l is i in the features, and the length of the features + i in the classifier. Where the
pools stand is not in the state dict, so the layers must be given. Checkpoints of the ReLU network have the weights
alone.

Official code: nitin-rathi/DIET-SNN, `VGG_SNN_STDB`, and nitin-rathi/hybrid-snn-conversion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spikeloom.conversion.diet_vgg import VGG9, VGG16, DietConfig, DietVGG, ReluVGG

LAYERS = {"VGG9": VGG9, "VGG16": VGG16}
PER_LAYER = 3


def official_names(net: DietVGG | ReluVGG) -> dict[str, str]:
    """Each official entry and the parameter of ours that it is."""
    convs, hidden = len(net.convs), len(net.linears)
    features = PER_LAYER * convs
    names = {}
    for part, count, first in (("convs", convs, 0), ("linears", hidden, features)):
        module = "features" if part == "convs" else "classifier"
        for index in range(count):
            names[f"{module}.{PER_LAYER * index}.weight"] = f"{part}.{index}.synapse.weight"
            if isinstance(net, DietVGG):
                layer = first + PER_LAYER * index
                names[f"threshold.t{layer}"] = f"{part}.{index}.fire.v_threshold"
                names[f"leak.l{layer}"] = f"{part}.{index}.fire.leak"
    names[f"classifier.{PER_LAYER * hidden}.weight"] = "head.weight"
    return names


def diet_from_official(
    layers: str | Sequence[int | str], state_dict: Mapping[str, Tensor], *, T: int | None = 5, **settings: Any
) -> DietVGG:
    """The spiking network with the weights, thresholds and leaks of an official state dict, in its floating type.

    Args:
        layers: "VGG9", "VGG16" or the official list of widths and "A".
        state_dict: its entries; a prefix `module.` (from several GPUs) is taken off.
        T: steps to show an image for.
        settings: further fields of `DietConfig`, such as `input_size`, `dropout`, `gamma`.

    Raises:
        ValueError: names or shapes do not fit the layers (those are listed); a leak or threshold out of range.
    """
    net = DietVGG(_config(layers, state_dict, T, settings))
    _load(net, _bare(state_dict))
    return net.eval()


def relu_from_official(layers: str | Sequence[int | str], state_dict: Mapping[str, Tensor], **settings: Any) -> ReluVGG:
    """The ReLU network with the weights of an official state dict. Arguments and errors as `diet_from_official`."""
    net = ReluVGG(_config(layers, state_dict, 1, settings))
    _load(net, _bare(state_dict))
    return net.eval()


def to_official(net: DietVGG | ReluVGG) -> dict[str, Tensor]:
    """The parameters under their official names: the inverse of both."""
    own = net.state_dict()
    return {theirs: own[ours].detach().clone() for theirs, ours in official_names(net).items()}


def _bare(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def _config(
    layers: str | Sequence[int | str], state_dict: Mapping[str, Tensor], T: int | None, settings: Mapping[str, Any]
) -> DietConfig:
    """What the shapes show, and what was given."""
    if isinstance(layers, str):
        if layers not in LAYERS:
            raise ValueError(f"layers={layers!r}; expected {', '.join(LAYERS)}, or a list of widths and 'A'")
        layers = LAYERS[layers]
    state = _bare(state_dict)
    first = state.get("features.0.weight")
    maps = sorted((int(key.split(".")[1]), value) for key, value in state.items() if key.startswith("classifier."))
    if first is None or not maps:
        raise ValueError(
            f"the state dict has no features.0.weight or no classifier.*.weight; its entries are {', '.join(state)}. "
            "Expected that of an official VGG (the entry 'state_dict' of a checkpoint)."
        )
    widths = [value.shape[0] for _, value in maps]
    return DietConfig(
        tuple(layers), tuple(widths[:-1]), num_classes=widths[-1], in_channels=first.shape[1], T=T, **settings
    )


def _load(net: DietVGG | ReluVGG, state: Mapping[str, Tensor]) -> None:
    names, own = official_names(net), net.state_dict()
    problems = [f"{key} is missing" for key in names if key not in state]
    problems += [f"{key} is not in the network" for key in state if key not in names]
    problems += [
        f"{key} is {list(state[key].shape)}, the network's is {list(own[ours].shape)}"
        for key, ours in names.items()
        if key in state and state[key].numel() != own[ours].numel()
    ]
    for key, value in state.items():
        low, high = key.startswith("threshold.") and not bool((value > 0).all()), key.startswith("leak.")
        if low or (high and not bool((value <= 1).all())):
            problems.append(f"{key} is {value.tolist()} (expected a threshold > 0, a leak <= 1)")
    if problems:
        raise ValueError(
            f"the state dict does not fit {net.config.layers} with {net.config.hidden}: {'; '.join(problems)}. Check "
            "layers= and input_size=."
        )
    types = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(types) == 1:
        net.to(types.pop())
    with torch.no_grad():
        net.load_state_dict({ours: state[key].reshape(own[ours].shape) for key, ours in names.items()})
