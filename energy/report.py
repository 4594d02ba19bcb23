"""`Report`: counts with prices on them, for people (text, page) and for programs (JSON, CSV).

report = run.report(accuracy=0.97)          # or Report.load("energy.json")
report.print()
report.to_html("energy.html")
report.reprice(models=["loihi2018"], policy=Policy(integers="mac")).print()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from spikeloom.energy.baselines import Row, compare
from spikeloom.energy.counts import Counts
from spikeloom.energy.models import EnergyModel, get_model
from spikeloom.energy.pricing import Price, price
from spikeloom.energy.stats import Interval, interval
from spikeloom.energy.store import REPORT_FORMAT, check_format, from_dict, read_json, write_bytes, write_json
from spikeloom.energy.totals import DEFAULT_POLICY, Policy, Totals
from spikeloom.energy.tree import Node, layer_rows, module_tree

DEFAULT_MODELS = (
    "horowitz45_fp32",
    "horowitz45_fp16",
    "horowitz45_int8",
    "memory45",
    "lemaire2022",
    "loihi2018",
    "truenorth2014",
    "gpu_titan",
)
"""The first one makes the headline; the others show how far the answer depends on the hardware."""
VERSION = 1


class Report:
    """Counts, a policy, hardware models, and the numbers that follow; nothing is run.

    Args:
        counts: of a run.
        policy: what is an AC and what a MAC.
        models: names or models; the first one makes the headline. A later one that cannot price this policy is listed
            with the reason.
        accuracy: share of right decisions, 0 to 1, and `accuracy_note`: of what.
        accuracy_by_step: the same if the run stopped after 1, ..., T steps.
        title: what was counted; None: the model of the setting.

    Attributes:
        prices: by name of the model; `refused`: why a model gave none.

    Raises:
        ValueError: an accuracy outside 0 to 1 or not T of them; no models, two of one name; the first cannot price.
    """

    def __init__(
        self,
        counts: Counts,
        policy: Policy = DEFAULT_POLICY,
        models: Sequence[str | EnergyModel] = DEFAULT_MODELS,
        *,
        accuracy: float | None = None,
        accuracy_note: str = "",
        accuracy_by_step: Sequence[float] | None = None,
        title: str | None = None,
    ) -> None:
        self.counts, self.policy = counts, policy
        self.models = [get_model(model) if isinstance(model, str) else model for model in models]
        self.accuracy, self.accuracy_note = accuracy, accuracy_note
        self.accuracy_by_step = None if accuracy_by_step is None else [float(share) for share in accuracy_by_step]
        self.title = title or str(counts.setting.get("network", counts.setting.get("model", "network")))
        self._check()
        self.prices: dict[str, Price] = {}
        self.refused: dict[str, str] = {}
        for index, model in enumerate(self.models):
            try:
                self.prices[model.name] = price(counts, model, policy)
            except ValueError as error:
                if index == 0:
                    raise
                self.refused[model.name] = str(error)

    def _check(self) -> None:
        names = [model.name for model in self.models]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"models are {names or 'none'}; expected at least one, each once.")
        for share in [self.accuracy, *(self.accuracy_by_step or [])]:
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"accuracy is {share}; expected a share, 0 to 1 (97 % is 0.97).")
        if self.accuracy_by_step is not None and len(self.accuracy_by_step) != self.counts.T:
            raise ValueError(
                f"accuracy_by_step has {len(self.accuracy_by_step)} values; expected {self.counts.T}, one for each "
                "number of steps from 1 to T."
            )

    @cached_property
    def totals(self) -> Totals:
        """Sums over the layers."""
        return Totals(self.counts, self.policy)

    @property
    def main(self) -> Price:
        """The price under the first model."""
        return self.prices[self.models[0].name]

    @cached_property
    def sop(self) -> Interval:
        """Synaptic operations per inference; unassigned layers add their mean to each sample."""
        extra = self.totals.unassigned["sop"] / self.counts.samples
        return interval(self.totals.sop.sum(0) + extra)

    def energy(self, model: str | None = None) -> Interval:
        """pJ per inference under a model (None: the first); unassigned layers add their mean to each sample.

        Raises:
            KeyError: the report has no price under that model.
        """
        found = self.prices[self.models[0].name if model is None else model]
        return interval(found.per_sample + sum(found.unassigned.values()) / found.samples)

    @cached_property
    def comparisons(self) -> dict[str, list[Row]]:
        """Exact, paper, ANN and QANN side by side, for every model that prices AC and MAC and no memory."""
        models = [price.model for price in self.prices.values()]
        return {m.name: compare(self.counts, self.policy, m) for m in models if m.per_operation and m.memory is None}

    def ann(self, model: str | None = None) -> float | None:
        """pJ of the same network with ReLUs, one step, exact dense terms; None: the model has no price for it.

        On a machine that computes everything in every step a ReLU is charged as a neuron update.
        """
        found = self.prices[self.models[0].name if model is None else model].model
        if found.name in self.comparisons:
            return next(row.energy_pj for row in self.comparisons[found.name] if row.name == "ann_exact")
        if found.rule == "dense":
            updates = found.constants.get("update", 0.0) * self.totals.neuron_updates
            return found.constants["dense"] * self.totals.ann_mac_nominal + updates
        return None

    def ratio(self, model: str | None = None) -> float | None:
        """Energy over that of the ANN; None: the ANN has no price."""
        name = self.models[0].name if model is None else model
        ann = self.ann(name)
        return self.prices[name].mean / ann if ann else None

    def tree(self, model: str | None = None) -> Node:
        """Layers under their modules, with means per inference."""
        found = self.prices[self.models[0].name if model is None else model]
        energy = {layer.name: found.layer_mean(layer.name) for layer in self.counts.layers}
        return module_tree(layer_rows(self.counts, self.policy, energy))

    def reprice(
        self, policy: Policy | None = None, models: Sequence[str | EnergyModel] | None = None, title: str | None = None
    ) -> Report:
        """The same counts under another policy or other models."""
        return Report(
            self.counts,
            self.policy if policy is None else policy,
            self.models if models is None else models,
            accuracy=self.accuracy,
            accuracy_note=self.accuracy_note,
            accuracy_by_step=self.accuracy_by_step,
            title=title or self.title,
        )

    def renamed(self, names: Mapping[str, str]) -> Report:
        """The same with other names of layers; see `Counts.renamed`."""
        return Report(
            self.counts.renamed(names),
            self.policy,
            self.models,
            accuracy=self.accuracy,
            accuracy_note=self.accuracy_note,
            accuracy_by_step=self.accuracy_by_step,
            title=self.title,
        )

    def table(self) -> RenderableType:
        """Everything as tables for a terminal."""
        from spikeloom.energy.text import render_report

        return render_report(self)

    def print(self, console: Console | None = None) -> None:
        """Print the tables (default: on the process's terminal)."""
        (console or Console(highlight=False)).print(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        """The tables as plain text, 120 characters wide."""
        console = Console(width=120, no_color=True, highlight=False)
        with console.capture() as text:
            console.print(self)
        return text.get()

    def to_dict(self) -> dict[str, Any]:
        """Format "spikeloom-energy-report": the counts (integers), the policy, and prices with their constants."""
        from spikeloom.energy.export import report_dict

        return report_dict(self)

    def to_json(self, path: str | Path) -> Path:
        """Write `to_dict` (compressed if the name ends in .gz); `Report.load` reads it. Returns the path."""
        return write_json(path, self.to_dict())

    def to_csv(self, path: str | Path, steps: bool = False) -> Path:
        """Write a line per layer, or per layer and time step; see `spikeloom.energy.export.csv_rows`."""
        from spikeloom.energy.export import csv_rows, write_csv

        return write_csv(csv_rows(self, steps), path)

    def to_html(self, path: str | Path) -> Path:
        """Write one page with all pictures and tables, which needs nothing from outside; returns the path.

        Raises:
            ImportError: jinja2 is not installed.
        """
        from spikeloom.energy.html import render_page

        target = Path(path)
        write_bytes(target, render_page(self).encode())
        return target

    @classmethod
    def load(
        cls,
        path: str | Path,
        policy: Policy | None = None,
        models: Sequence[str | EnergyModel] | None = None,
    ) -> Report:
        """A stored report, or one of stored counts.

        Args:
            policy, models: in the place of the stored ones; for bare counts None means the defaults.

        Raises:
            StoreError: neither, another version, or damaged.
        """
        from spikeloom.energy.export import stored_model

        data = read_json(path)
        if not (isinstance(data, dict) and data.get("format") == REPORT_FORMAT):
            return cls(from_dict(data, str(path)), policy or DEFAULT_POLICY, models or DEFAULT_MODELS)
        check_format(data, REPORT_FORMAT, VERSION, str(path))
        return cls(
            from_dict(data.get("counts"), str(path)),
            policy or Policy(**data["policy"]),
            models or [stored_model(entry) for entry in data["models"]],
            accuracy=data["accuracy"],
            accuracy_note=data["accuracy_note"],
            accuracy_by_step=data["accuracy_by_step"],
            title=data["title"],
        )
