"""How far energy counters are from exact counts, on the golden networks of tests/.

A row is one counter on one network: AC and MAC of all steps and samples, `ratio` = its energy at 0.9 pJ per AC and
4.6 pJ per MAC over that of the exact counts, and a remark that says of every layer that differs what it was given.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any

from _energy_counters import TOOLS, Tool
from _energy_nets import Case, Operations, cases, exact, load

AC_PJ, MAC_PJ = 0.9, 4.6
"""45 nm, 32-bit floating point (Horowitz, ISSCC 2014)."""
ROUNDING = 1e-5
"""Relative: some counters sum in single precision."""
NOT_COUNTED = "not counted"


def compare_tools(tools_path: Path | None = None, tools: Sequence[Tool] = TOOLS) -> list[dict[str, Any]]:
    """All counters on all cases.

    Args:
        tools_path: folder with the packages of counters that are not in this environment (`pip install --target`).

    Returns:
        Rows `case, tool, version, ac, mac, ratio, differences, remark`; `ac`, `mac`, `ratio` and `differences` are None
        for a counter that cannot be imported.
    """
    if tools_path is not None:
        if not tools_path.is_dir():
            raise SystemExit(f"--tools-path {tools_path}: no such folder; pip install --target {tools_path} makes it")
        sys.path.append(str(tools_path.resolve()))  # last, so that torch and all others stay this environment's
    return [row_of(name, load(name), tool) for name in cases() for tool in tools]


def row_of(name: str, case: Case, tool: Tool) -> dict[str, Any]:
    """One counter on one network."""
    row: dict[str, Any] = {"case": name, "tool": tool.name, "version": version_of(tool)}
    try:
        counted = tool.counter(case)
    except ImportError as error:
        line = f"pip install --no-deps --target build/tools {tool.pip}"
        remark = f"not installed ({error}). `{line}`, then --tools-path build/tools"
        return {**row, "ac": None, "mac": None, "ratio": None, "differences": None, "remark": remark}
    ac, mac = (sum(operations[i] for operations in counted.values()) for i in (0, 1))
    differences = differences_of(case, counted)
    return {
        **row,
        "ac": plain(ac),
        "mac": plain(mac),
        "ratio": round(energy(ac, mac) / sum(energy(*operations) for operations in exact(case).values()), 6),
        "differences": differences,
        "remark": "; ".join(f"{layer}: {reason}" for layer, reason in differences.items()) or "exact",
    }


def version_of(tool: Tool) -> str:
    """The installed version of a counter's package; empty for a rule."""
    try:
        return importlib.metadata.version(tool.package) if tool.package else ""
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def energy(ac: float, mac: float) -> float:
    """Picojoules."""
    return AC_PJ * ac + MAC_PJ * mac


def plain(value: float) -> float:
    """An integer if it is one, but for rounding."""
    nearest = round(value)
    return nearest if isclose(value, nearest, rel_tol=1e-6) else round(value, 2)


def differences_of(case: Case, counted: Mapping[str, Operations]) -> dict[str, str]:
    """The layers that a counter does not count exactly, and what it gives them."""
    wanted, entries = exact(case), {entry["name"]: entry for entry in case.golden["layers"]}
    return {
        layer: reason(entries[layer], case.steps * case.samples, counted.get(layer, (0, 0)))
        for layer in wanted
        if not same(counted.get(layer, (0, 0)), wanted[layer])
    }


def same(a: Operations, b: Operations) -> bool:
    """Equal but for rounding?"""
    return all(isclose(x, y, rel_tol=ROUNDING) for x, y in zip(a, b, strict=True))


def reason(entry: Mapping[str, Any], frames: int, got: Operations) -> str:
    """Which of the layer's other counts an inexact one is, if it is one; else the number.

    Args:
        entry: the layer in the golden file.
        frames: time steps times samples.
    """

    def total(key: str) -> float | None:
        return None if entry.get(key) is None else sum(map(sum, entry[key]))

    nominal, events = entry["dense_nominal"], total("events") or 0
    rate = nominal * events / entry["in_numel"] if "in_numel" in entry else None
    known = (
        (NOT_COUNTED, 0, 0),
        ("dense MAC", 0, nominal * frames),
        ("MAC per SOP", 0, total("sop")),
        ("AC per SOP", total("sop"), 0),
        ("AC per SOP with a non-zero weight", total("sop_nonzero_weight"), 0),
        ("AC per SOP of one operand alone", total("sop_a"), 0),
        ("AC per SOP of one operand alone", total("sop_b"), 0),
        ("FLOPs x rate", rate, 0),
    )
    for words, ac, mac in known:
        if ac is not None and mac is not None and same(got, (ac, mac)):
            return words
    (ac, mac), wanted = got, total("ac") or 0
    return f"{ac:,.0f} AC + {mac:,.0f} MAC, exact {wanted:,.0f} + {total('mac') or 0:,.0f}"
