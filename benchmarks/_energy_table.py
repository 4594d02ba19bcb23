"""Markdown tables of the comparison of energy counters, as they stand in docs/benchmarks.md.

python benchmarks/_energy_table.py benchmarks/results/energy_tools.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def main(files: Sequence[str]) -> None:
    """Print the table of counts and that of differences."""
    for file in files:
        record = json.loads(Path(file).read_text())
        print(f"`{record['command']}` on {record['device']}, commit {record['commit']}, {record['date'][:10]}\n")
        for columns, lines in (counts(record["rows"]), differences(record["rows"])):
            print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
            for line in lines:
                print("| " + " | ".join(line) + " |")
            print()
        for line in missing(record["rows"]):
            print(line)


def counts(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of the counts: a line per case, a column per counter, `AC / MAC (ratio)`."""
    tools = list(dict.fromkeys(heading(row) for row in rows))
    by_case: dict[str, dict[str, str]] = {}
    for row in rows:
        by_case.setdefault(row["case"], {})[heading(row)] = cell(row)
    return ["case", *tools], [[case, *(found.get(tool, "") for tool in tools)] for case, found in by_case.items()]


def heading(row: Row) -> str:
    """Name and version of a counter."""
    return f"{row['tool']} {row['version']}".strip()


def cell(row: Row) -> str:
    """`AC / MAC (ratio)`; "exact" only if every layer is."""
    if row["ac"] is None:
        return "not installed"
    if not row["differences"]:
        return f"{row['ac']:,.0f} / {row['mac']:,.0f}" + ("" if row["tool"] == "brute force" else " (exact)")
    return f"{row['ac']:,.0f} / {row['mac']:,.0f} ({row['ratio']:.2f}x)"


def differences(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of what layers were given instead: layers with the same reason share a line."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        for layer, reason in (row["differences"] or {}).items():
            found.setdefault((heading(row), reason), {}).setdefault(row["case"], []).append(layer)
    order = list(dict.fromkeys(heading(row) for row in rows))
    lines = [
        [tool, reason, "; ".join(f"{case}: {', '.join(layers)}" for case, layers in by_case.items())]
        for (tool, reason), by_case in found.items()
    ]
    return ["counter", "what a layer is given", "layers"], sorted(lines, key=lambda line: order.index(line[0]))


def missing(rows: Sequence[Row]) -> list[str]:
    """What to do about the counters that are not installed, one line each."""
    return [*dict.fromkeys(f"{row['tool']}: {row['remark']}" for row in rows if row["ac"] is None)]


if __name__ == "__main__":
    main(sys.argv[1:])
