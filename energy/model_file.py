"""Energy models in a TOML file: one table per model.

    [my_chip]
    technology = "22 nm, 0.8 V"            # what the numbers hold for
    formula = "3.1 SOP + 12 updates"       # for people
    source = "Doe et al., 2026, Table 2"
    evidence = "measured"                  # measured, simulated or estimated
    scope = "per_term"                     # per_term, or all_in: memory, routing and leakage are inside
    constants = { sop = 3.1, update = 12.0 }    # pJ

Optional: `rule` ("terms" is the default; "dense", "paper", "lemaire"), `remarks`, `disputed` (true or false),
`options`, `base` (the name of a model, of this file or registered, whose constants are taken), and a memory:

    [my_chip_with_memory]
    ...
    base = "horowitz45_int8"
    [my_chip_with_memory.memory]
    kind = "sram"                          # sram, dram or flat
    sram = [[8192, 10.0], [32768, 20.0]]   # [bytes, pJ per access]
    access_bits = 64

`spikeloom.energy.models.EnergyModel` lists constants and options, `spikeloom.energy.memory.Memory` the fields of a
memory. Constants that a model with a base gives itself replace the base's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from spikeloom.energy.memory import Memory
from spikeloom.energy.models import EnergyModel, get_model, register_all

PACKAGE_FILE = Path(__file__).with_name("models.toml")

_KEYS = {field.name: field for field in fields(EnergyModel) if field.name != "name"}
_REQUIRED = [n for n, f in _KEYS.items() if f.default is MISSING and f.default_factory is MISSING]
_TABLES = ("constants", "options", "memory")


def load_models(path: str | Path) -> list[str]:
    """Register all models of a TOML file; returns their names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no TOML; a key, constant or option is unknown; something is missing; a constant is
            negative or not finite; terms are added to an all-in figure; a name is taken. Nothing is registered then.
    """
    models = read_models(Path(path))
    register_all(models)
    return [model.name for model in models]


def read_models(path: Path) -> list[EnergyModel]:
    """The models of a TOML file, in its order; nothing is registered. Raises as `load_models`."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    found: dict[str, EnergyModel] = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path}: {name} = {table!r} stands outside any model; begin one with [its_name]")
        try:
            found[name] = _model(name, table, found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return list(found.values())


def _model(name: str, table: Mapping[str, Any], found: Mapping[str, EnergyModel]) -> EnergyModel:
    where = f"energy model {name!r}"
    unknown = [key for key in table if key not in _KEYS]
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; the keys are {', '.join(_KEYS)}")
    missing = [key for key in _REQUIRED if key not in table]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing")
    for key, value in table.items():
        expected = dict if key in _TABLES else bool if key == "disputed" else str
        if not isinstance(value, expected):
            raise ValueError(f"{where}: {key} is {value!r}; expected a {_WORDS[expected]}")
    values = dict(table)
    if "memory" in values:
        values["memory"] = _memory(where, values["memory"])
    if "base" in values:
        base = found.get(values["base"]) or get_model(values["base"])
        values["constants"] = {**base.constants, **values.get("constants", {})}
        if base.scope != values["scope"]:
            raise ValueError(f"{where}: its base {base.name!r} is {base.scope}, so it cannot be {values['scope']}")
    return EnergyModel(name=name, **values)


def _memory(where: str, table: Mapping[str, Any]) -> Memory:
    known = [field.name for field in fields(Memory)]
    unknown = [key for key in table if key not in known]
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)} of its memory; the keys are {', '.join(known)}")
    try:
        return Memory(**table)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


_WORDS: Mapping[type, str] = {dict: "table", bool: "truth value (true or false)", str: "text"}
