"""`spikeloom models`: the registered models with their sizes and published results; one of them in full."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import tyro
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spikeloom.models.config import nearest, to_json
from spikeloom.models.registry import TOP_1, Entry, Published, default_config, describe, is_model, list_models
from spikeloom.models.sizes import Size, size_of

_TYRO = (tyro.conf.FlagCreatePairsOff,)
_NOTE = (
    "Parameters and multiply-accumulates (MACs) are counted here, the latter dense and per time step; results are "
    "those that the paper printed (% is top-1), none was measured here. `spikeloom models NAME` shows one in full."
)
_MARK = "* with a note: `spikeloom models NAME`"


@dataclass(frozen=True)
class ModelsOptions:
    """Registered models: what they are, their sizes, and the accuracies that their papers published."""

    pattern: tyro.conf.Positional[str] = "*"
    """Names that match, such as "spikformer*"; the name of one model shows it in full."""
    json: bool = False
    """Print JSON, with the whole configurations."""


def models(argv: list[str]) -> int:
    """`spikeloom models [PATTERN]`: returns the exit code."""
    options = tyro.cli(ModelsOptions, args=argv, prog="spikeloom models", config=_TYRO)
    names = matching(options.pattern)
    if options.json:
        print(json.dumps([as_json(name) for name in names], indent=2))
        return 0
    console = Console(highlight=False)
    console.print(card(names[0]) if is_model(options.pattern) else tables(names))
    return 0


def matching(pattern: str) -> list[str]:
    """The names that match a shell pattern, in alphabetical order.

    Raises:
        ValueError: there are none; the nearest names are given.
    """
    names = list_models(pattern)
    if names:
        return names
    word = pattern.strip("*")
    hint = f" {f'*{word}*'!r} matches some." if word and list_models(f"*{word}*") else ""
    raise ValueError(
        f"No model matches {pattern!r}{nearest(word, list_models())}.{hint} `spikeloom models` lists all "
        f"{len(list_models())}."
    )


def as_json(name: str) -> dict[str, Any]:
    """All that is known of a model, as plain values."""
    entry, size = describe(name), size_of(name)
    return {
        "name": name,
        "class": entry.kind.__name__,
        "says": entry.says,
        "paper": entry.paper,
        "parameters": size.parameters,
        "parts": dict(size.parts),
        "macs_per_step": size.macs,
        "input": dict(zip("TN" if len(size.shape) == 1 else "TCHW", (size.T, *size.shape), strict=False)),
        "published": [to_json(result) for result in entry.published],
        "config": to_json(default_config(name)),
    }


def tables(names: list[str]) -> RenderableType:
    """A table of models per paper."""

    def paper(name: str) -> str:
        return describe(name).paper

    ordered = sorted(names, key=lambda name: (not paper(name), paper(name), name))
    parts: list[RenderableType] = []
    for title, group in groupby(ordered, key=paper):
        parts += [Text(title or "Without a paper of its own", style="bold"), _table(list(group)), ""]
    if any(result.note for name in names for result in describe(name).published):
        parts += [Text(_MARK, style="dim")]
    return Group(*parts, Text(_NOTE, style="dim"))


def _table(names: list[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("  name", no_wrap=True)
    table.add_column("T x C x H x W", no_wrap=True, justify="right")
    table.add_column("params", no_wrap=True, justify="right")
    table.add_column("MACs/step", no_wrap=True, justify="right")
    table.add_column("what it is", ratio=1)
    for name in names:
        entry, size = describe(name), size_of(name)
        says = Text(entry.says)
        if entry.published:
            says.append("\n" + published_line(entry.published), style="cyan")
        table.add_row(Text(f"  {name}", style="bold"), axes(size), amount(size.parameters), amount(size.macs), says)
    return table


def published_line(published: tuple[Published, ...]) -> str:
    """`paper: CIFAR-10 95.51 %*, CIFAR-100 78.21 %*`, with a star where there is a note.

    A data set's later results say in a clause what sets them apart. Spaces at which a line must not end are fixed ones.
    """
    results, seen = [], set()
    for result in published:
        words = printed(result) + ("*" if result.note else "")
        words = f"{result.dataset} {words}" if result.dataset not in seen else words
        clause = re.split(r"[,;]", result.note)[0]
        words += f" ({clause})" if result.dataset in seen and clause else ""
        seen.add(result.dataset)
        results.append(words.replace(" ", "\xa0"))
    return f"paper: {', '.join(results)}"


def card(name: str) -> RenderableType:
    """One model in full."""
    entry, size = describe(name), size_of(name)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("class", f"{entry.kind.__module__}.{entry.kind.__name__}")
    if entry.paper:
        facts.add_row("paper", Text(entry.paper))
    facts.add_row(
        "input",
        f"{axes(size)} (T x {'C x H x W' if size.shape[1:] else 'N'})"
        if size.shape
        else f"{axes(size)}: token ids [T, B]",
    )
    facts.add_row("MACs", f"{amount(size.macs)} per time step, dense")
    sections: list[tuple[str, RenderableType]] = [
        ("Parameters", _parts_table(size)),
        ("Published by the paper, not measured here", _published_table(entry)),
        ("Configuration (every field can be overridden)", _config_table(name)),
        ("Use", Text(usage(name, size))),
    ]
    parts: list[RenderableType] = [Text(name, style="bold"), Text(entry.says), "", facts]
    for title, content in sections:
        parts += ["", Text(title, style="bold"), Padding(content, (0, 0, 0, 2))]
    return Group(*parts)


def _parts_table(size: Size) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    for part, n in size.parts.items():
        table.add_row(part, f"{n:,}", percent(100 * n / size.parameters))
    table.add_row("total", f"{size.parameters:,}", "", style="bold")
    return table


def _published_table(entry: Entry) -> RenderableType:
    if not entry.published:
        return Text("nothing", style="dim")
    table = Table.grid(padding=(0, 2))
    for result in entry.published:
        table.add_row(result.dataset, printed(result), Text(result.note, style="dim"))
    return table


def _config_table(name: str) -> Table:
    table = Table.grid(padding=(0, 2))
    for field, value in vars(default_config(name)).items():
        table.add_row(field, Text(repr(value), style="cyan"))
    return table


def usage(name: str, size: Size) -> str:
    """Lines to copy."""
    if not size.shape:
        return (
            "from spikeloom.models import create_model\n"
            f'model = create_model("{name}")\n'
            "logits = model(ids)  # ids: token ids [T, B], tokens along the first axis"
        )
    if len(size.shape) == 1:
        return (
            "from spikeloom.models import create_model\n"
            f'model = create_model("{name}", num_classes=10)\n'
            f"outputs = model(x)  # x: [T, B, {size.shape[0]}]; outputs of every step"
        )
    C, H, W = size.shape
    frames = f"[T, B, {C}, {H}, {W}]" if size.T is None else f"[{size.T}, B, {C}, {H}, {W}]"
    images = "" if size.T is None else f"images [B, {C}, {H}, {W}] or "
    return (
        "from spikeloom.models import create_model\n"
        f'model = create_model("{name}", num_classes=10)\n'
        f"logits = model(x).mean(0)  # x: {images}frames {frames}\n"
        f"$ spikeloom energy {name}{'' if size.T is None else f' --T {size.T}'}"
    )


def axes(size: Size) -> str:
    """`4 x 3 x 32 x 32`, or `T x 2 x 34 x 34` where any number of steps will do; `T tokens` of a language model."""
    if not size.shape:
        return "T tokens" if size.T is None else f"{size.T} tokens"
    return " x ".join(str(n) for n in ("T" if size.T is None else size.T, *size.shape))


def amount(n: int) -> str:
    """`36.01 M`: two digits behind the point, as papers print them."""
    for unit, step in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= step:
            return f"{n / step:.2f} {unit}"
    return str(n)


def printed(result: Published) -> str:
    """`95.51 %`, or `39.75 perplexity`."""
    return percent(result.accuracy) if result.metric == TOP_1 else f"{result.accuracy:g} {result.metric}"


def percent(value: float) -> str:
    """`95.51 %`."""
    return f"{value:.2f} %"
