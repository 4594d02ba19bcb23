"""Energy models: what an operation costs, in pJ, who says so, and how it is known.

A model is data: constants, source, evidence, scope. The models that come with the package are in `models.toml`; the
format, for your own, is described in `spikeloom.energy.model_file`.

    get_model("loihi2018", updates="all")
    get_model("memory45", base="horowitz45_int8", kind="flat")
    list_models("horowitz*")
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from spikeloom.energy.memory import Memory

EVIDENCE = ("measured", "simulated", "estimated")
SCOPES = ("per_term", "all_in")
"""Whether other terms may be added: an all-in figure already contains memory, routing and leakage."""

CONSTANTS = {
    "terms": ("ac", "mac", "mul", "compare", "sop", "update", "update_inactive", "tile_spike", "hop_ew", "hop_ns"),
    "dense": ("dense", "update"),
    "paper": ("ac", "mac"),
    "lemaire": ("add", "mul", "mac"),
}
"""The constants [pJ] that each rule of pricing knows; `EnergyModel` says what they are."""

_REQUIRED = {"dense": ("dense",), "paper": ("ac", "mac"), "lemaire": ("add", "mul", "mac")}
_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "terms": {"updates": ("touched", "all"), "tile_spikes": (False, True), "hops_ew": (), "hops_ns": ()},
    "dense": {},
    "paper": {},
    "lemaire": {"fanout": ("exact", "paper")},
}
_OPTION_PRICES = {
    "updates": "update_inactive",
    "tile_spikes": "tile_spike",
    "hops_ew": "hop_ew",
    "hops_ns": "hop_ns",
}
_OUTSIDE_ALL_IN = ("update", "update_inactive", "tile_spike", "hop_ew", "hop_ns", "compare")

Option = str | float | bool


@dataclass(frozen=True)
class EnergyModel:
    """Prices, and where they come from.

    Attributes:
        rule: how counts are priced: "terms" (constant x count, summed), "dense" (every term of every step and every
            neuron update), "paper" (the literature's rule) or "lemaire" (Lemaire et al. 2022).
        constants: pJ. Rule "terms": `ac` and `mac`, or `sop` = one synaptic operation of either sort (an integer spike
            counts as the policy says); `mul`, one multiplication; `compare`, one comparison; `update` of a neuron with
            an input current, `update_inactive` without one (absent: the same); `tile_spike` per spike, `hop_ew` and
            `hop_ns` per spike and hop. Rule "dense": `dense` per term (with those on padding), `update`.
        evidence: "measured", "simulated" or "estimated".
        scope: "per_term", or "all_in": other terms must not be added.
        disputed: sources disagree; `remarks` says how.
        options: `updates` ("touched": see `update_inactive`; "all": every update is active), `tile_spikes` (charge
            them), `hops_ew`, `hops_ns` (mean hops of a spike); rule "lemaire": `fanout` ("exact" or "paper").
        base: the name of the model whose constants these are, for a model that adds memory to another one.
        memory: what words cost; rule "terms" with `ac` and `mac`, or "lemaire".

    Raises:
        ValueError: a value is not one of those above, a constant is negative or not finite, or terms are added to an
            all-in figure.
    """

    name: str
    technology: str
    formula: str
    source: str
    evidence: str
    scope: str
    constants: Mapping[str, float] = field(default_factory=dict)
    rule: str = "terms"
    remarks: str = ""
    disputed: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    base: str | None = None
    memory: Memory | None = None

    def __post_init__(self) -> None:
        for name in ("name", "technology", "formula", "source"):
            if not (isinstance(getattr(self, name), str) and getattr(self, name)):
                raise ValueError(f"energy model {self.name!r}: {name} is empty; a price without one cannot be judged")
        self._one_of("evidence", self.evidence, EVIDENCE)
        self._one_of("scope", self.scope, SCOPES)
        self._one_of("rule", self.rule, tuple(CONSTANTS))
        self._check_constants()
        self._check_options()
        self._check_scope()

    def _one_of(self, what: str, value: Any, known: tuple[Any, ...]) -> None:
        if value not in known:
            expected = ", ".join(map(str, known))
            raise ValueError(f"energy model {self.name!r}: {what} is {value!r}; expected one of {expected}")

    def _check_constants(self) -> None:
        for name, value in self.constants.items():
            self._one_of("a constant", name, CONSTANTS[self.rule])
            _amount(f"energy model {self.name!r}: constant {name}", value)
        missing = [name for name in _REQUIRED.get(self.rule, ()) if name not in self.constants]
        if missing:
            raise ValueError(f"energy model {self.name!r}: rule {self.rule!r} needs the constants {', '.join(missing)}")
        both = "sop" in self.constants and bool({"ac", "mac"} & set(self.constants))
        if self.rule == "terms" and (both or self.per_operation == ("sop" in self.constants)):
            raise ValueError(
                f"energy model {self.name!r}: give a price per AC and MAC (constants ac and mac) or one per synaptic "
                f"operation (sop); it has {', '.join(self.constants) or 'none'}"
            )
        if "update_inactive" in self.constants and "update" not in self.constants:
            raise ValueError(f"energy model {self.name!r}: update_inactive without update")

    def _check_options(self) -> None:
        for name, value in self.options.items():
            self._one_of("an option", name, tuple(_OPTIONS[self.rule]))
            choices = _OPTIONS[self.rule][name]
            if choices:
                self._one_of(f"option {name}", value, choices)
            else:
                _amount(f"energy model {self.name!r}: option {name}", value)
            price = _OPTION_PRICES.get(name)
            if price is not None and price not in self.constants:
                raise ValueError(f"energy model {self.name!r}: option {name} needs the constant {price}")

    def _check_scope(self) -> None:
        added = [name for name in _OUTSIDE_ALL_IN if name in self.constants]
        added += ["memory"] if self.memory is not None else []
        if self.scope == "all_in" and added:
            raise ValueError(
                f"energy model {self.name!r}: an all_in figure already contains {', '.join(added)}; take them out, or "
                "say scope = 'per_term' if it does not"
            )
        if self.memory is not None and not (self.rule == "lemaire" or self.per_operation):
            raise ValueError(
                f"energy model {self.name!r}: memory can only be added to prices of AC and MAC; a price per synaptic "
                "operation or dense term of a chip contains its memory"
            )
        if self.rule == "lemaire" and self.memory is None:
            raise ValueError(f"energy model {self.name!r}: rule 'lemaire' needs a memory table")

    @property
    def per_operation(self) -> bool:
        """Are accumulates and MACs priced apart?"""
        return self.rule == "terms" and "ac" in self.constants and "mac" in self.constants

    def used(self) -> dict[str, Any]:
        """Constants, options and memory as one flat dict of plain values, for a report."""
        memory = {} if self.memory is None else {f"memory.{k}": v for k, v in self.memory.to_dict().items()}
        base = {} if self.base is None else {"base": self.base}
        return {**base, **self.constants, **self.options, **memory}

    def with_options(self, **options: Any) -> EnergyModel:
        """The model with other options (of `options` or of its memory).

        Raises:
            ValueError: it has no such option, or the value is not one of those it takes.
        """
        of_memory = {} if self.memory is None else {f.name for f in fields(Memory)}
        for name in options:
            if name not in self.options and name not in of_memory:
                known = ", ".join(sorted({*self.options, *of_memory})) or "none"
                raise ValueError(f"energy model {self.name!r} has no option {name!r}; its options are: {known}")
        own = {**self.options, **{k: v for k, v in options.items() if k in self.options}}
        changed = {k: v for k, v in options.items() if k not in self.options}
        return replace(self, options=own, memory=replace(self.memory, **changed) if self.memory else None)


def _amount(what: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} is {value!r}; expected a finite number, zero or larger")


def with_memory(model: EnergyModel | str, **options: Any) -> EnergyModel:
    """A model of arithmetic plus the memory words of `memory45`; `options` are fields of `Memory`.

    Raises:
        ValueError: the model is all-in, prices synaptic operations of a chip, or has memory already.
    """
    base = get_model(model) if isinstance(model, str) else model
    if base.memory is not None:
        raise ValueError(f"energy model {base.name!r} has memory already; its options change it: get_model(name, ...)")
    template = get_model("memory45")
    return replace(
        base,
        name=f"{base.name}+memory",
        formula=f"{base.formula} + words x energy per word of a memory of that size",
        source=f"{base.source}; {template.source}",
        remarks=f"{base.remarks} {template.remarks}".strip(),
        base=base.name,
        memory=template.memory,
    ).with_options(**options)


_MODELS: dict[str, EnergyModel] = {}


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern such as "horowitz*", in alphabetical order."""
    return sorted(name for name in _models() if fnmatchcase(name, pattern))


def get_model(name: str, **options: Any) -> EnergyModel:
    """A registered model, with options changed.

    Args:
        options: those of `EnergyModel.options` and `Memory`; for a model with a base, `base` names another one.

    Raises:
        ValueError: there is no such model (the nearest names are given) or option.
    """
    known = _models()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
        raise ValueError(f"There is no energy model {name!r} (nearest: {near}). list_models() gives all {len(known)}.")
    model = known[name]
    base = options.pop("base", None)
    if base is not None:
        if model.base is None:
            raise ValueError(f"energy model {name!r} has no base to exchange; memory45 has")
        model = rebased(model, get_model(base))
    return model.with_options(**options) if options else model


def rebased(model: EnergyModel, base: EnergyModel) -> EnergyModel:
    """A model that adds memory, with the arithmetic of another base.

    Raises:
        ValueError: the base is all-in or does not price AC and MAC, so that memory cannot be added.
    """
    return replace(model, base=base.name, constants=base.constants, scope=base.scope, technology=base.technology)


def register_model(model: EnergyModel) -> EnergyModel:
    """Add a model to those that go by name.

    Raises:
        ValueError: the name is taken.
    """
    register_all([model])
    return model


def register_all(models: Iterable[EnergyModel]) -> None:
    """Add models, all or none."""
    known, new = _models(), {}
    for model in models:
        if model.name in known or model.name in new:
            raise ValueError(f"an energy model called {model.name!r} is already registered; rename yours")
        new[model.name] = model
    known.update(new)


def _models() -> dict[str, EnergyModel]:
    """All models; those of the package are read at first use."""
    if not _MODELS:
        from spikeloom.energy.model_file import PACKAGE_FILE, read_models

        _MODELS.update({model.name: model for model in read_models(PACKAGE_FILE)})
    return _MODELS
