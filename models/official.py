"""Checkpoints of the papers' own code: `from_official("spikformer", config, state_dict)` builds the model they fit.

A family's adapter (in the file of its model) reads the constructor arguments of the official class, builds our model,
and says which of our entries each official entry is. Nothing is skipped in silence: every entry of the checkpoint is
used, is known to be one that the official forward never reads (a warning counts them), or is an error that lists it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.models.config import nearest
from spikeloom.models.registry import create_model, list_models

FUSED = "qkv"
"""Our module for the maps to q, k and v in one: a third of the rows of each of its tensors belongs to each."""
Build = Callable[..., nn.Module]
Rename = Callable[[str], str]


@dataclass(frozen=True)
class Family:
    """How checkpoints of one family are read.

    build: (official constructor arguments, official state dict, **overrides) -> our model.
    rename: an official entry's name -> ours.
    dead: patterns (`re.fullmatch`) of entries that the official forward never reads; our models hold them only with
        `legacy_keys=True`.
    models: pattern of the registered variants, to name the one that a checkpoint fits.
    """

    build: Build
    rename: Rename
    dead: tuple[str, ...]
    models: str


_FAMILIES: dict[str, Family] = {}


def register_family(name: str, family: Family) -> None:
    """Make a family known to `from_official`.

    Raises:
        ValueError: the name is taken.
    """
    if name in _FAMILIES:
        raise ValueError(f"The family {name!r} is already registered.")
    _FAMILIES[name] = family


def list_families() -> list[str]:
    """The names that `from_official` takes."""
    return sorted(_FAMILIES)


def from_official(family: str, config: Mapping[str, Any], state_dict: Mapping[str, Any], **options: Any) -> nn.Module:
    """Build our model from the constructor arguments and the state dict of the paper's official code, strictly.

    Args:
        family: see `list_families`.
        config: keyword arguments of the official class.
        state_dict: its state dict, also as the published files wrap it (under `state_dict` or `model`, names with a
            `module.` in front). Linear weights and those of 1 x 1 convolutions are exchanged by shape.
        options: fields of our configuration to replace; `legacy_keys=True` also keeps entries that no forward reads.

    Raises:
        ValueError: an unknown family, entries too many or missing (all are listed), or shapes of another variant (the
            registered variants that it fits are named).
    """
    known = _family(family)
    state = unwrap(state_dict)
    model = known.build(dict(config), state, **options)
    load_official(model, state, family)
    return model


def load_official(model: nn.Module, state_dict: Mapping[str, Any], family: str) -> None:
    """Load a checkpoint of the official code into a model of ours, strictly; see `from_official`."""
    known, state = _family(family), unwrap(state_dict)
    own = model.state_dict()
    names = {key: translate(family, key, own) for key in state}
    here = {key: name for key, name in names.items() if name.partition("#")[0] in own}
    dead = [key for key in state if key not in here and _is_dead(known, key)]
    found = {name: key for key, name in reversed(here.items())}  # the first, where two have one name
    extra = sorted(key for key in state if key not in dead and found.get(names[key]) != key)
    missing = sorted(name for name in _places(own, found) if name not in found)
    shapes = [
        f"{key} {list(state[key].shape)} (the model has {list(_part(own, name).shape)})"
        for name, key in found.items()
        if not _fits(state[key], _part(own, name))
    ]
    if extra or missing or shapes:
        raise ValueError(_complaint(known, family, state, extra, missing, shapes))
    with torch.no_grad():
        for name, key in found.items():
            _part(own, name).copy_(state[key].reshape(_part(own, name).shape))
    if dead:
        warnings.warn(
            f"{len(dead)} entries that the official {family} code never reads were left out, such as {dead[0]}; "
            "legacy_keys=True keeps them.",
            stacklevel=3,
        )


def translate(family: str, key: str, own: Iterable[str]) -> str:
    """Our name of an official entry; `own` are the names that our model has.

    The convention of all these papers is `x_conv` or `x_linear`, `x_bn`, `x_lif`; ours is a module `x` with `synapse`
    and `fire` (normalisation and neuron in one), or `norm` where something lies between normalisation and neuron. The
    maps `q`, `k`, `v` may be one map `qkv` of ours: then the name ends in "#0", "#1" or "#2", a third of its rows.
    """
    name = _family(family).rename(key)
    name = re.sub(r"(?<=[a-z0-9])_(conv|linear)(\d*)(?=\.)", r"\2.synapse", name)
    normed = re.sub(r"(?<=[a-z0-9])_bn(\d*)(?=\.)", r"\1.norm", name)
    name = normed if normed in own else re.sub(r"(?<=[a-z0-9])_bn(\d*)(?=\.)", r"\1.fire", name)
    fused = re.sub(r"(?:^|(?<=\.))[qkv](?=\.(synapse|fire)\.)", FUSED, name)
    if name not in own and fused in own:
        return f"{fused}#{'qkv'.index(name.removesuffix(fused.partition(FUSED)[2])[-1])}"
    return name


def _places(own: Iterable[str], found: Mapping[str, str]) -> Iterator[str]:
    """What must be found to fill the model: each of its names, or the thirds of those of which a third was found."""
    for name in own:
        thirds = [f"{name}#{part}" for part in range(3)]
        yield from thirds if any(third in found for third in thirds) else [name]


def _part(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of a name; of "name#i" the i-th third of its rows (all of a number)."""
    base, _, part = name.partition("#")
    whole = tensors[base]
    return whole.chunk(3)[int(part)] if part and whole.ndim else whole


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: out of `state_dict` or `model`, without `module.` in front of the names."""
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    wrong = [key for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(
            f"The state dict holds {wrong[0]!r}, a {type(state_dict[wrong[0]]).__name__}; expected tensors by name, "
            "or a checkpoint with them under 'state_dict' or 'model'."
        )
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def _family(name: str) -> Family:
    if name not in _FAMILIES:
        raise ValueError(f"There is no family {name!r}{nearest(name, _FAMILIES)}. Known: {', '.join(list_families())}.")
    return _FAMILIES[name]


def _is_dead(family: Family, key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in family.dead)


def _fits(theirs: Tensor, ours: Tensor) -> bool:
    """Equal shapes, up to the axes of one entry that a 1 x 1 convolution's weight has at its end."""
    shape = list(theirs.shape)
    while len(shape) > ours.ndim and shape[-1] == 1:
        shape.pop()
    return shape == list(ours.shape)


def _complaint(
    known: Family, family: str, state: Mapping[str, Tensor], extra: list[str], missing: list[str], shapes: list[str]
) -> str:
    parts = [f"The state dict does not fit the {family} model that its configuration describes."]
    for words, entries in (("entries too many", extra), ("entries missing", missing), ("other shapes", shapes)):
        if entries:
            parts.append(f"{len(entries)} {words}: {', '.join(entries)}.")
    fitting = fitting_variants(family, state)
    if fitting:
        parts.append(f"It fits {' and '.join(fitting)}.")
    elif shapes or extra:
        parts.append(f"It fits none of the registered variants ({', '.join(list_models(known.models))}).")
    return " ".join(parts)


def fitting_variants(family: str, state: Mapping[str, Tensor]) -> list[str]:
    """The registered variants that a state dict fits, up to the number of classes."""
    known, fitting = _family(family), []
    classes = next((len(value) for key, value in state.items() if re.fullmatch(r"head\.bias", key)), 0)
    for variant in list_models(known.models):
        with torch.device("meta"):
            own = create_model(variant, num_classes=classes).state_dict()
        names = {translate(family, key, own): key for key in state if not _is_dead(known, key)}
        if names.keys() == set(_places(own, names)) and all(
            _fits(state[key], _part(own, name)) for name, key in names.items()
        ):
            fitting.append(variant)
    return fitting
