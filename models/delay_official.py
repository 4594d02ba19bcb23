"""Checkpoints of the code of the delay networks (family `dcls_delays`), and ours under its names.

There everything is one numbered container: per hidden layer the synapses, the normalisation if any, the neuron, the
dropout, the synapse filter if any; then the output's synapses and neuron. Published checkpoints hold real positions and
the widths of training: `model.round_()` makes the form that is evaluated.

Arguments are the fields of its configuration; `init_tau` and `stateful_synapse_tau` in steps, `max_delay` the taps K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spikeloom.models.config import configure
from spikeloom.models.delay_snn import DelaySNN, DelaySNNConfig
from spikeloom.models.official import Family, demand, register_family

FAMILY = "dcls_delays"
_MODELS = {"snn_delays": "learned", "snn_delays_lr0": "fixed", "snn": "none"}
_NAMES = {
    "in_features": "n_inputs",
    "depth": "n_hidden_layers",
    "hidden": "n_hidden_neurons",
    "num_classes": "n_outputs",
    "kernel_count": "kernel_count",
    "max_delay": "max_delay",
    "version": "DCLSversion",
    "sigma": "sigInit",
    "neuron": "spiking_neuron_type",
    "tau": "init_tau",
    "v_threshold": "v_threshold",
    "alpha": "alpha",
    "dropout": "dropout_p",
    "batch_norm": "use_batchnorm",
    "bias": "bias",
    "readout": "loss",
    "sparsity": "sparsity_p",
}
"""Our field -> the official one."""
_TRAINING = (
    *("epochs", "final_epoch", "lr_w", "lr_pos", "weight_decay", "seed", "init_pos_a", "init_pos_b"),
    "augment",
)
"""Official fields that change nothing in a built network."""
_READ = (
    *("model_type", "left_padding", "right_padding", "detach_reset", "output_v_threshold"),
    *("stateful_synapse", "stateful_synapse_tau", "stateful_synapse_learnable"),
)


def official_names(model: DelaySNN) -> dict[str, str]:
    """Our name of every entry of the state dict -> the official one; masks of absent synapses have none there."""
    config = model.config
    normed, stride = int(config.batch_norm), 3 + config.batch_norm + (config.filter_tau is not None)

    def place(name: str) -> str:
        *path, entry = name.split(".")
        if path[0] == "head":
            return f"model.{config.depth * stride + (path[1] == 'neuron')}.{entry}"
        offsets = {"synapse": 0, "fire": 1, "filter": stride - 1}
        offset = offsets[path[2]] + (normed if path[2] == "fire" and (entry == "w") else 0)
        return f"model.{int(path[1]) * stride + offset}.{entry}"

    return {name: place(name) for name in model.state_dict() if not name.endswith(".mask")}


def official_state(model: DelaySNN) -> dict[str, Tensor]:
    """The state dict under the names of the official code."""
    state = model.state_dict()
    return {theirs: state[ours] for ours, theirs in official_names(model).items()}


def _build(config: dict[str, Any], state: dict[str, Tensor], **options: Any) -> DelaySNN:
    """Build the network, and give the entries of the state dict our names, in place."""
    fields = {**_seen(state), **our_fields(config)}
    _demand(config, fields)
    settings = configure(DelaySNNConfig(), {**fields, **options})
    with torch.device("meta"):
        expected = official_names(DelaySNN(settings)), DelaySNN(settings).state_dict()
    _check(state, *expected)
    renamed = {ours: state[theirs] for ours, theirs in expected[0].items()}
    state.clear()
    state.update(renamed)
    if settings.sparsity:
        state |= {name.replace("weight", "mask"): w != 0 for name, w in renamed.items() if ".synapse.weight" in name}
    return DelaySNN(settings)


def _demand(config: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    lacking = [] if fields["delays"] == "none" else ["max_delay"]
    if fields.get("neuron", "lif") == "lif":
        lacking.append("init_tau")
    demand(FAMILY, config, *lacking)


def _seen(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes show: the synapses are the weights with two or three axes."""
    weights = [w for key, w in sorted(state.items(), key=_order) if key.endswith(".weight") and w.ndim > 1]
    if len(weights) < 2:
        raise ValueError(
            f"The {FAMILY} state dict has {len(weights)} weights of synapses; expected model.0.weight and more of "
            "[outputs, inputs, kernel_count], or [outputs, inputs] of the network without delays."
        )
    first, last = weights[0], weights[-1]
    fields = {"in_features": first.shape[1], "hidden": first.shape[0], "num_classes": last.shape[0]}
    delayed = first.ndim == 3
    return {
        **fields,
        "depth": len(weights) - 1,
        "kernel_count": first.shape[2] if delayed else 1,
        "delays": "learned" if delayed else "none",
    }


def _order(entry: tuple[str, Tensor]) -> tuple[int, str]:
    number = entry[0].split(".")[1:2]
    return (int(number[0]) if number and number[0].isdigit() else -1, entry[0])


def our_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DelaySNNConfig` that a configuration of the official code gives."""
    fields = {ours: config[theirs] for ours, theirs in _NAMES.items() if config.get(theirs) is not None}
    if "model_type" in config:
        if config["model_type"] not in _MODELS:
            raise ValueError(f"model_type is {config['model_type']!r}; expected one of {', '.join(_MODELS)}.")
        fields["delays"] = _MODELS[config["model_type"]]
    if config.get("detach_reset") is False:
        raise ValueError("detach_reset=False is not built here; the published networks have True.")
    if config.get("stateful_synapse"):
        demand(FAMILY, config, "stateful_synapse_tau")
        fields["filter_tau"] = config["stateful_synapse_tau"]
        fields["learn_filter"] = bool(config.get("stateful_synapse_learnable"))
    if fields.get("readout") == "spike_count" and "output_v_threshold" in config:
        fields["output_threshold"] = config["output_v_threshold"]
    if fields.get("delays") != "none" and "max_delay" in config:
        fields["tail"] = _tail(config)
    return fields


def _tail(config: Mapping[str, Any]) -> str:
    longest = config["max_delay"] - 1
    left, right = config.get("left_padding", longest), config.get("right_padding", longest // 2)
    tails = {longest: "lossless", 0: "none", longest // 2: "official"}
    if left != longest or right not in tails:
        raise ValueError(
            f"left_padding={left}, right_padding={right} with max_delay={longest + 1}; expected {longest} and one of "
            f"{', '.join(map(str, tails))}."
        )
    return tails[right]


def _check(state: Mapping[str, Tensor], names: Mapping[str, str], own: Mapping[str, Tensor]) -> None:
    """Raise unless the official entries are these, each of its shape."""
    theirs = {official: own[ours].shape for ours, official in names.items()}
    problems = {
        "entries too many": [key for key in state if key not in theirs],
        "entries missing": [key for key in theirs if key not in state],
        "other shapes": [
            f"{key} {list(state[key].shape)} for {list(shape)}"
            for key, shape in theirs.items()
            if key in state and state[key].shape != shape
        ],
    }
    found = [f"{len(keys)} {words}: {', '.join(keys)}." for words, keys in problems.items() if keys]
    if found:
        raise ValueError(f"The state dict does not fit the {FAMILY} network of its configuration. {' '.join(found)}")


# entries have our names when they are looked up, as their numbers depend on the network: see `_build`
register_family(FAMILY, Family(_build, str, (), "delays_*", (*_NAMES.values(), *_READ, *_TRAINING)))
