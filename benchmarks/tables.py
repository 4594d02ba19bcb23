"""Markdown tables of benchmark results, as they stand in docs/benchmarks.md.

python benchmarks/tables.py benchmarks/results/neurons_h100_lif.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def main(files: list[str]) -> None:
    """Print one table per section of every file."""
    for file in files:
        record = json.loads(Path(file).read_text())
        peers = sorted({name for row in record["rows"] for name in row["peers"]})
        print(f"`{record['command']}` on {record['device']}, commit {record['commit']}, {record['date'][:10]}\n")
        head = ["", "dtype", "pass", "device ms", "x limit", "eager ms", "graph ms", *peers]
        print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
        for row in record["rows"]:
            print("| " + " | ".join(cells(row, peers)) + " |")
        print()


def cells(row: Row, peers: list[str]) -> Iterator[str]:
    """One line: our times, then each peer's eager time and its ratio to ours."""
    ours = row["ours"]
    yield f"{row['section']} {row['shape_name']}{' *' if row['in_cache'] else ''}"
    yield row["dtype"]
    yield row["pass"]
    yield milliseconds(ours.get("gpu"))
    yield f"{row['x_limit']:.2f}" if row.get("x_limit") else ""
    yield milliseconds(ours.get("eager"))
    yield milliseconds(row.get("graph", {}).get("gpu"))
    for peer in peers:
        measured = row["peers"].get(peer)
        timed = measured.get("eager") if isinstance(measured, dict) else None
        if timed:
            yield f"{milliseconds(timed)} ({timed['median'] / ours['eager']['median']:.1f}x)"
        else:
            yield measured if isinstance(measured, str) else ""


def milliseconds(timed: Row | None) -> str:
    """A median with three digits."""
    return f"{timed['median']:.3g}" if timed else ""


if __name__ == "__main__":
    main(sys.argv[1:])
