"""Print the energy models of `energy/models.toml` as a Markdown table, or write it into a page:

    python scripts/energy_models_table.py [--write docs/energy.md]

The page holds the table between the lines of `MARKS`. A test compares the two.
"""

import argparse
from pathlib import Path

from spikeloom.energy.model_file import PACKAGE_FILE, read_models
from spikeloom.energy.models import EnergyModel
from spikeloom.energy.sections import models_table

MARKS = ("<!-- energy models: python scripts/energy_models_table.py --write docs/energy.md -->", "<!-- end -->")
COLUMNS = ("model", "formula, pJ", "constants", "evidence", "scope", "technology", "source", "remarks")
"""Columns of the table of `spikeloom energy models`, in the page's order."""


def table(models: list[EnergyModel]) -> str:
    """One line per model, in the order given."""
    shown = models_table(models)
    heads = [head.text for head in shown.heads]
    places = [heads.index(heading) for heading in COLUMNS]
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for line in shown.lines:
        cells = [line.cells[place].text for place in places]
        lines.append(" | ".join([f"`{cells[0]}`", *cells[1:]]))
    return "\n".join(f"| {line} |" for line in lines)


def written(page: str, content: str) -> str:
    """The page with `content` between the marks.

    Raises:
        ValueError: the page does not hold both marks, each once.
    """
    begin, end = MARKS
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must hold the lines {begin!r} and {end!r}, each once")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description="The energy models as a Markdown table.")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it into this page, between its marks")
    page = parser.parse_args().write
    content = table(read_models(PACKAGE_FILE))
    if page is None:
        print(content)
    else:
        page.write_text(written(page.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()
