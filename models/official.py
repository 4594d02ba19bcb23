"""Checkpoints of the papers' own code: `from_official("spikformer", config, state_dict)` builds the model they fit.

A family's adapter (in the file of its model) reads the constructor arguments of the official class, builds our model,
and says which of our entries each official entry is. Nothing is skipped in silence: every entry of the checkpoint is
used, is known to be one that the official forward never reads (a warning counts them), or is an error that lists it.
The constructor arguments are held to the same rule: each is used, is known to change nothing, or is an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.models.config import nearest
from spikeloom.models.registry import create_model, default_config, list_models

FUSED = "qkv"
"""Our module for the maps to q, k and v in one: a third of the rows of each of its tensors belongs to each."""
IGNORED = (
    *("img_size", "img_size_h", "img_size_w", "input_hw", "patch_size"),  # any size that the stride divides goes in
    *("sr_ratio", "sr_ratios", "qkv_bias", "qk_scale", "attn_drop", "proj_drop"),  # taken, and never used there
    *("drop", "drop_rate", "attn_drop_rate", "proj_drop_rate", "drop_path", "drop_path_rate", "drop_block_rate"),
    *("norm_layer", "act_layer", "embed_layer", "get_embed", "layer", "kd", "choice", "global_pool", "comment"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "default_cfg", "features_only", "scriptable"),
)
"""Arguments that the official classes or their makers take and that change nothing in what is built here."""
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
    arguments: names of the official constructor arguments that `build` reads or that this family alone ignores; those
        of `IGNORED` are known to every family.
    """

    build: Build
    rename: Rename
    dead: tuple[str, ...]
    models: str
    arguments: tuple[str, ...]


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
        config: keyword arguments of the official class. What the shapes of the state dict show may be left out.
        state_dict: its state dict, also as the published files wrap it (under `state_dict` or `model`, names with a
            `module.` in front). Linear weights and those of 1 x 1 convolutions are exchanged by shape.
        options: fields of our configuration to replace; `legacy_keys=True` also keeps entries that no forward reads.

    Raises:
        ValueError: an unknown family, arguments that are unknown or lacking, entries too many or missing (all are
            listed), or shapes of another variant (the registered variants that it fits are named).
    """
    known = _family(family)
    arguments = _arguments(family, config)
    state = unwrap(state_dict)
    try:
        model = known.build(arguments, state, **options)
    except ValueError as error:
        fitting = fitting_variants(family, state)
        if not fitting:
            raise
        raise ValueError(f"{error} The state dict fits {' and '.join(fitting)}.") from error
    load_official(model, state, family)
    return model


def demand(family: str, config: Mapping[str, Any], *names: str) -> None:
    """Raise unless the official constructor arguments hold these, which no shape of a state dict shows."""
    lacking = [name for name in names if config.get(name) is None]
    if lacking:
        raise ValueError(
            f"The {family} configuration has no {' and no '.join(lacking)}, which no shape of the state dict shows; "
            f"expected the arguments that the model was trained with, here {', '.join(map(repr, config)) or 'none'}."
        )


def _arguments(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor arguments as a dict, each of a known name."""
    if not isinstance(config, Mapping):
        raise ValueError(
            f"The {family} configuration is a {type(config).__name__}; expected the keyword arguments of the official "
            "class by name, such as {'embed_dims': 384, ...}."
        )
    known = (*_family(family).arguments, *IGNORED)
    unknown = [name for name in config if name not in known]
    if unknown:
        name = str(unknown[0])
        raise ValueError(
            f"The {family} configuration has {name!r}, no argument of the official class{nearest(name, known, 1)}; "
            f"read here are {', '.join(_family(family).arguments)}. Leave out what the class does not take."
        )
    return dict(config)


def load_official(model: nn.Module, state_dict: Mapping[str, Any], family: str) -> None:
    """Load a checkpoint of the official code into a model of ours, strictly; see `from_official`."""
    known, state = _family(family), unwrap(state_dict)
    own = model.state_dict()
    names = {key: translate(family, key, own) for key in state}
    here = {key: name for key, name in names.items() if name.partition("#")[0] in own}
    dead = [key for key in state if key not in here and _is_dead(known, key)]
    found = {name: key for key, name in reversed(here.items())}  # the first, where two have one name
    extra = sorted(key for key in state if key not in dead and found.get(names[key]) != key)
    missing = [name for name in _places(own, found) if name not in found]
    shapes = [
        f"{key} {list(state[key].shape)} (the model has {list(_part(own, name).shape)})"
        for name, key in found.items()
        if not _fits(state[key], _part(own, name))
    ]
    if extra or missing or shapes:
        lacking = sorted(official_name(family, name, names, own) for name in missing)
        raise ValueError(_complaint(known, family, state, extra, lacking, shapes))
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
    """What must be found to fill the model: each of its names, or the thirds of those of a fused map."""
    for name in own:
        thirds = FUSED in name.split(".") and name not in found
        yield from [f"{name}#{part}" for part in range(3)] if thirds else [name]


def _part(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of a name; of "name#i" the i-th third of its rows (all of a number)."""
    base, _, part = name.partition("#")
    whole = tensors[base]
    return whole.chunk(3)[int(part)] if part and whole.ndim else whole


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: out of `state_dict` or `model`, without `module.` in front of the names.

    Raises:
        ValueError: it is no mapping of names to tensors.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"The state dict is a {type(state_dict).__name__}; expected tensors by name, or a checkpoint with them "
            "under 'state_dict' or 'model', as torch.load returns it."
        )
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    wrong = [key for key, value in state_dict.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if wrong:
        raise ValueError(
            f"The state dict holds {wrong[0]!r}, a {type(state_dict[wrong[0]]).__name__}; expected tensors by name, "
            "or a checkpoint with them under 'state_dict' or 'model'."
        )
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def official_name(family: str, name: str, names: Mapping[str, str], own: Iterable[str]) -> str:
    """The official name of one of our entries that a state dict lacks, made from the names of its neighbours there.

    Args:
        name: ours, with "#i" for a third of its rows. names: ours of every official entry that is there.
        own: the names that our model has.

    The neighbours are other entries of the same module, then the same entry of another block. Where none leads to the
    name, ours is given, a third in words.
    """
    elsewhere = (key for key, ours in names.items() if _numberless(ours) == _numberless(name))
    beside = (key for key, ours in names.items() if _module(ours) == _module(name))
    candidates = chain(
        chain.from_iterable(_respelled(key, name, names) for key in beside),
        chain.from_iterable(_renumbered(key, name) for key in elsewhere),
    )
    for candidate in candidates:
        if translate(family, candidate, own) == name:
            return candidate
    base, _, part = name.partition("#")
    return f"{base} ({'qkv'[int(part)]} part)" if part else base


def _numberless(name: str) -> str:
    base, mark, part = name.partition("#")
    return re.sub(r"\d+", "", base) + mark + part


def _module(name: str) -> str:
    """The module of an entry, for synapse and normalisation the one that holds both."""
    return re.sub(r"(\.(synapse|norm|fire))?\.\w+(#\d)?$", "", name)


def _renumbered(key: str, name: str) -> Iterator[str]:
    """An official name with one of its numbers replaced by one that our name has, or left out."""
    for number in (*dict.fromkeys(re.findall(r"\d+", name.partition("#")[0])), ""):
        for match in re.finditer(r"\d+", key):
            yield key[: match.start()] + number + key[match.end() :]


def _respelled(key: str, name: str, keys: Iterable[str]) -> Iterator[str]:
    """An official name with the entry, the kind of layer and the letter of q, k and v replaced.

    Both `_conv` and `_linear` lead to a synapse: the one that other modules of the same parent have comes first.
    """
    module, entry = key.rpartition(".")[0], name.partition("#")[0].rpartition(".")[2]
    parent = module.rpartition(".")[0]
    linear = any(other.startswith(f"{parent}.") and "_linear." in other for other in keys)
    for kind in ("", *(("_linear", "_conv") if linear else ("_conv", "_linear")), "_bn"):
        for letter in ("", *"qkv"):
            spelled = re.sub(r"_(conv|linear|bn)(?=\d*$)", kind, module) if kind else module
            yield f"{re.sub(r'(?<=[.])[qkv](?=_)', letter, spelled) if letter else spelled}.{entry}"


def _family(name: str) -> Family:
    if name not in _FAMILIES:
        raise ValueError(f"There is no family {name!r}{nearest(name, _FAMILIES)}. Known: {', '.join(list_families())}.")
    return _FAMILIES[name]


def _is_dead(family: Family, key: str) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in family.dead)


def _fits(theirs: Tensor, ours: Tensor) -> bool:
    """Equal shapes, up to axes of one entry: of a 1 x 1 convolution at the end, in front of a value per channel."""
    shape = list(theirs.shape)
    while ours.ndim == 1 and len(shape) > 1 and shape[0] == 1:
        shape.pop(0)
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
    classes = state["head.bias"].numel() if "head.bias" in state else 0
    for variant in list_models(known.models):
        overrides = {"num_classes": classes} if hasattr(default_config(variant), "num_classes") else {}
        with torch.device("meta"):
            own = create_model(variant, **overrides).state_dict()
        names = {translate(family, key, own): key for key in state if not _is_dead(known, key)}
        if names.keys() == set(_places(own, names)) and all(
            _fits(state[key], _part(own, name)) for name, key in names.items()
        ):
            fitting.append(variant)
    return fitting
