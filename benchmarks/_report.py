"""Where the numbers come from, and how they are shown: tables of text, one JSON file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from _cases import SAVED

PACKAGES = ("torch", "triton", "numpy", "spikingjelly", "snntorch", "norse", "flash-linear-attention")
WIDTH = 300
"""Columns of a table where the output is no terminal."""


def conditions(device: torch.device, root: Path, commit: str) -> dict[str, Any]:
    """Machine, versions, commit, command and date of a run."""
    cupy = sorted(d.name for d in importlib.metadata.distributions() if (d.name or "").startswith("cupy"))
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or _commit(root),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("OMP_", "MALLOC_", "SJ_"))
        },
        "load_average_at_start": os.getloadavg()[0],
        "versions": {name: _version(name) for name in (*PACKAGES, *cupy)},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit(root: Path) -> str:
    """The commit of the checkout, "+ changes" if files differ from it; "unknown" without git."""
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (" + changes" if changed.strip() else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def spikingjelly_implementation(device: torch.device) -> str:
    """What SpikingJelly says its LIF runs on here."""
    try:
        from spikingjelly.activation_based.functional import neuron_implementation

        return str(neuron_implementation("lif", device))
    except Exception as error:  # whatever is wrong with a peer, it is only reported
        return f"{type(error).__name__}: {error}"


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record so far; a run that is cut off keeps what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(scratch, path)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, with rich where it is installed."""
    if importlib.util.find_spec("rich") is None:
        _show_plain(title, columns, rows)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=_colour(cell)) for cell in row))
    Console(width=max(WIDTH, Console().width)).print(table)
    sys.stdout.flush()


def _colour(cell: str) -> str:
    return "red" if "FAIL" in cell else "green" if "pass" in cell else ""


def _show_plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    print(f"\n{title}")
    for line in (columns, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True)


def show_section(section: str, rows: Sequence[dict[str, Any]]) -> None:
    """The tables of one section: time, then memory."""
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    cached = any(row["in_cache"] for row in rows)
    title = f"{section}: ours, and peers in eager ms (times ours)"
    table = [_cells(row, peers) for row in rows]
    # Columns without any entry (no GPU, no graph) are left out.
    columns = [name for name in table[0] if name in ("shape", "dtype") or any(cells[name] for cells in table)]
    note = " (* x below 50 MB: it may stay in the GPU's L2 cache)" if cached else ""
    show(title + note, columns, [[cells[name] for name in columns] for cells in table])
    _show_memory(section, [row for row in rows if row["pass"] != "forward"], peers)


def _show_memory(section: str, rows: Sequence[dict[str, Any]], peers: Sequence[str]) -> None:
    """Saved bytes and, on a GPU, the peak, for ours and every peer."""
    what = ", peak of a step beyond x and grad_s" if "peak_bytes_per_element" in rows[0]["ours"] else ""
    table = [
        [
            row["shape_name"],
            row["dtype"],
            *(_memory(m) for m in (row["ours"], *(row["peers"].get(p, {}) for p in peers))),
        ]
        for row in rows
    ]
    title = f"{section}: bytes per element of x: saved for backward beyond x{what}"
    show(title, ["shape", "dtype", "ours", *peers], table)


def _cells(row: dict[str, Any], peers: Sequence[str]) -> dict[str, str]:
    """One line of the table of times, by column."""
    ours = row["ours"]
    cells = {
        "shape": row["shape_name"] + (" *" if row["in_cache"] else ""),
        "dtype": row["dtype"],
        "pass": row["pass"],
        "gpu ms": _ms(ours.get("gpu")),
        "eager ms": _ms(ours.get("eager")) or ours.get("failure", "")[:40],
        "x limit": f"{row['x_limit']:.3g}" if "x_limit" in row else "",
        "graph ms": _ms(row["graph"].get("gpu")) or row["graph"].get("failure", "")[:40] if "graph" in row else "",
    }
    cells |= {name: _peer(row["peers"].get(name), ours) for name in peers}
    saved = [target for target in row["targets"] if target["what"] == SAVED]
    others = [target for target in row["targets"] if target["what"] != SAVED]
    return cells | {"saved bytes": verdicts(saved, named=False), "targets": verdicts(others)}


def _ms(timing: dict[str, Any] | None) -> str:
    """`0.293 (0.291-0.300)`: median and quartiles."""
    return "" if timing is None else f"{timing['median']:.3g} ({timing['low']:.3g}-{timing['high']:.3g})"


def _peer(peer: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    """Eager ms of a peer and how many times ours that is; or why there is no figure."""
    if peer is None:
        return ""
    if "failure" in peer or "eager" not in peer:
        return peer.get("failure", "not timed")[:20]
    ratio = f" ({peer['eager']['median'] / ours['eager']['median']:.3g}x)" if "eager" in ours else ""
    return f"{peer['eager']['median']:.3g}{ratio}"


def _memory(measured: dict[str, Any]) -> str:
    saved, peak = measured.get("saved_bytes_per_element"), measured.get("peak_bytes_per_element")
    return _number(saved) + (f", {peak:.3g}" if peak is not None else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def verdicts(targets: Sequence[dict[str, Any]], named: bool = True) -> str:
    """Targets in short: `x limit 1.05 <= 1.15 pass`."""
    words = []
    for target in targets:
        sign = ">=" if target["at_least"] else "<="
        value = "not measured" if target["value"] is None else f"{target['value']:.3g}"
        name = f"{target['what']} " if named else ""
        words.append(f"{name}{value} {sign} {target['bound']:g} {'pass' if target['met'] else 'FAIL'}")
    return "; ".join(words)


def show_host(rows: Sequence[dict[str, Any]]) -> None:
    """The table of host costs."""
    table = [
        [row["name"], "yes" if row["gradients"] else "no", _ms(row["us"]), verdicts(row["targets"])] for row in rows
    ]
    title = f"Host cost, x {list(rows[0]['shape'])}, over 40 batches of 50 calls"
    show(title, ["one forward call of", "gradients", "us (quartiles)", "targets"], table)
