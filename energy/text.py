"""A report for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding

from spikeloom.energy.baselines import context
from spikeloom.energy.conventions import conventions
from spikeloom.energy.others import memory_table, neuron_table, norm_table, other_table, uncounted_table
from spikeloom.energy.report import Report
from spikeloom.energy.sections import (
    comparison_table,
    energy_table,
    layer_table,
    models_table,
    reasons_table,
    static_table,
    totals_table,
)
from spikeloom.energy.tables import Head, Table
from spikeloom.energy.words import cautions, headline, verdict

_TONES = {"more": "bold red", "less": "bold green", "even": "bold", "": "bold"}


def render_report(report: Report) -> RenderableType:
    """All tables, the headline first."""
    said = verdict(report)
    parts: list[RenderableType] = [f"[bold]{escape(report.title)}[/]", escape(headline(report))]
    parts.append(f"[{_TONES[said.tone]}]{escape(said.text)}[/]")
    parts += [f"  {escape(reason)}" for reason in said.reasons]
    for caution in cautions(report):
        parts.append(f"[yellow]{escape(caution.text)}[/]")
        parts += [f"[yellow]  {escape(line)}[/]" for line in caution.entries]
    tables = report_tables(report)
    parts += [Padding(table, (1, 0, 0, 0)) for table in tables if table]
    parts += [f"[dim]{escape(line)}[/]" for line in context(report.counts, report.policy)]
    parts.append(Padding(_conventions(report), (1, 0, 1, 0)))
    # once more, because the first lines of a long report have left the terminal
    parts += [escape(headline(report)), f"[{_TONES[said.tone]}]{escape(said.text)}[/]"]
    return Group(*parts)


def report_tables(report: Report) -> list[Table]:
    """The tables in the order of a report; empty ones are left to the caller to skip."""
    tables = [layer_table(report), totals_table(report), energy_table(report)]
    for model in list(report.comparisons)[:1]:
        tables += [comparison_table(report, model), reasons_table(report, model)]
    tables += [static_table(report), neuron_table(report), norm_table(report), other_table(report)]
    return [*tables, memory_table(report), uncounted_table(report), models_table(report.models)]


def _conventions(report: Report) -> Table:
    table = Table("Conventions", [Head("", number=False), Head("", number=False, wrap=40)])
    for term, meaning in conventions(report.counts, report.policy):
        table.add(term, meaning)
    return table
