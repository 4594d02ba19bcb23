"""`Table`: a table of a report before it is text or HTML. On a narrow terminal the columns that matter least go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.markup import escape
from rich.table import Table as RichTable

STYLES = {"": "", "module": "dim", "total": "bold", "warn": "yellow", "more": "red", "less": "green"}
"""Styles of lines and cells: sums over a module, the last line, what to look at, dearer and cheaper than the ANN."""

_BETWEEN = 3
"""Characters between two columns."""


@dataclass(frozen=True)
class Head:
    """A column.

    number: aligned to the right. keep: the lowest go first where there is no room; 9 always stays. wrap: words that may
    be broken into lines of so many characters; 0: they may not.
    """

    text: str
    number: bool = True
    keep: int = 9
    wrap: int = 0


@dataclass(frozen=True)
class Cell:
    """Words of a cell; `depth` indents a name in a tree, `share` (0 to 1) draws a bar on a page."""

    text: str
    style: str = ""
    depth: int = 0
    share: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of cells, one per column."""

    cells: list[Cell]
    style: str = ""


@dataclass
class Table:
    """Columns, lines, and a note on what the numbers mean."""

    title: str
    heads: list[Head]
    lines: list[Line] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: str | Cell, style: str = "") -> None:
        """Append a line."""
        self.lines.append(Line([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells], style))

    def __bool__(self) -> bool:
        """Has it lines?"""
        return bool(self.lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, as many columns as fit, and the note."""
        yield f"[bold]{escape(self.title)}[/]"
        columns = list(range(len(self.heads)))
        left_out: list[str] = []
        for index in self._by_need():
            if self._width(columns) <= options.max_width:
                break
            columns.remove(index)
            left_out.append(self.heads[index].text)
        yield self._rich(columns)
        if left_out:
            yield f"[dim]columns without room here: {escape(', '.join(reversed(left_out)))}[/]"
        if self.note:
            yield f"[dim]{escape(self.note)}[/]"

    def _width(self, columns: list[int]) -> int:
        """Characters that these columns need."""
        total = _BETWEEN * (len(columns) - 1)
        for index in columns:
            head = self.heads[index]
            longest = max([len(head.text), *(len(_indented(line.cells[index])) for line in self.lines)])
            total += min(longest, max(head.wrap, len(head.text))) if head.wrap else longest
        return total

    def _by_need(self) -> Iterator[int]:
        """Columns that may go, the least needed first."""
        droppable = [(head.keep, -index) for index, head in enumerate(self.heads) if head.keep < 9]
        return (-index for _, index in sorted(droppable))

    def _rich(self, columns: list[int]) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold dim")
        for index in columns:
            head = self.heads[index]
            justify: JustifyMethod = "right" if head.number else "left"
            table.add_column(escape(head.text), justify=justify, overflow="fold", no_wrap=not head.wrap)
        for line in self.lines:
            cells = [_words(line.cells[index]) for index in columns]
            table.add_row(*cells, style=STYLES[line.style] or None)
        return table


def _indented(cell: Cell) -> str:
    return "  " * cell.depth + cell.text


def _words(cell: Cell) -> str:
    words = escape(_indented(cell))
    style = STYLES[cell.style]
    return f"[{style}]{words}[/]" if style else words
