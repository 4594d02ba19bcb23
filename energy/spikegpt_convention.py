"""What a token costs SpikeGPT in its paper's convention and counted strictly, side by side.

Per token, with C channels, L blocks, V tokens in the vocabulary; an AC is 0.9 pJ, a MAC 4.6 (Horowitz, ISSCC 2014, 45
nm; estimated). Zeros are multiplied too, in both columns.

    part                paper convention       strict
    R, K, V, O          4 C^2 L rate  AC       4 C^2 L  MAC      time-mix, products with weights
    channel-mix         9 C^2 L rate  AC       9 C^2 L  MAC
    WKV                 6 C L  MAC             6 C L  MAC
    token shift         -                      10 C L  MAC       mixtures of a token with the one before
    gates               -                      2 C L  MAC        in eval mode
    residual additions  -                      rate C  AC        per LIF
    head                V C  MAC               V C  MAC          listed apart from the rest

The convention of the paper (Zhu et al. 2023, "SpikeGPT", arXiv:2302.13939) is our reconstruction: its authors publish
no script. `rate` is there that of the neurons whose spikes were added last to what the mixer reads: for a channel-mix
the first LIF of its block, for a time-mix the second one of the block before, in block 0 the embedding. Strictly an AC
needs an operand that is a spike: the residual additions alone, as every matrix reads a LayerNorm or a real product.
Each multiplication of WKV and token shift is taken as a MAC, although some are not followed by an addition. Count in
eval mode: in training dropout multiplies too, by a mask, and its C L products would be among the gates. The ANN to
compare with is the same network: a MAC per product of a matrix, and dense residual additions where these are counted.
(The paper's table compares with a Transformer, whose attention takes 2 T C per token of T in the place of WKV.)

Reads counts alone, by the names that SpikeGPT's modules have, so stored counts will do; those of its classifier too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from spikeloom.energy.counts import Counts, Layer, MapCount, NeuronCount, PairCount
from spikeloom.energy.totals import DEFAULT_POLICY, books_mac, layer_ac

AC_PJ, MAC_PJ = 0.9, 4.6
WKV_MACS = 6
"""Of the paper's table: 6 T d for the product of attention."""
HEAD = "head"
_MATRIX = re.compile(r"blocks\.(\d+)\.(att|ffn)\.(key|value|receptance|output)")
_PROGRAM = re.compile(r"blocks\.(\d+)\.(att|ffn)\.(mix|wkv)")


@dataclass(frozen=True)
class Line:
    """Operations of a part per token, mean of the run, of the network and of the same ANN."""

    part: str
    ac: float
    mac: float
    ann_ac: float
    ann_mac: float


@dataclass(frozen=True)
class Column:
    """One convention: its lines, and by name what it counts without a price, per token."""

    convention: str
    lines: tuple[Line, ...]
    unpriced: dict[str, float]

    def line(self, part: str) -> Line | None:
        """The line of a part; None: the convention leaves it out."""
        return next((line for line in self.lines if line.part == part), None)

    def energy_pj(self, *, head: bool) -> float:
        """pJ per token of the network, with or without its head."""
        return sum(AC_PJ * line.ac + MAC_PJ * line.mac for line in self.lines if head or line.part != HEAD)

    def ann_pj(self, *, head: bool) -> float:
        """The same of the ANN."""
        return sum(AC_PJ * line.ann_ac + MAC_PJ * line.ann_mac for line in self.lines if head or line.part != HEAD)

    def ratio(self, *, head: bool) -> float:
        """How many times the energy of the network the ANN takes; infinite: the network takes none."""
        energy = self.energy_pj(head=head)
        return self.ann_pj(head=head) / energy if energy else math.inf


def firing_rates(counts: Counts) -> dict[str, float]:
    """Spikes per neuron and token: of the embedding ("binary") and of every LIF, by name, as they ran."""
    tokens = counts.T * counts.samples
    spiking: list[NeuronCount] = [entry for entry in counts.of(NeuronCount) if entry.spiking]
    return {entry.name: int(entry.spikes.sum()) / (entry.updates * tokens) for entry in spiking}


def paper_convention(counts: Counts) -> Column:
    """Every matrix of the blocks reads spikes, at the rate of the neurons behind what it reads; see above.

    Raises:
        ValueError: these are no counts of a SpikeGPT, or its embedding is not one of spikes.
    """
    rates = firing_rates(counts)
    lines = []
    for part, matrices in _matrices(counts).items():
        for matrix in matrices:
            if _fed_by(matrix) not in rates:
                raise ValueError(
                    f"{matrix.name} is behind {_fed_by(matrix)}, which did not run as neurons, so the convention has "
                    'no rate for it. Expected counts of a SpikeGPT with embedding="binary"; the strict column needs '
                    "no rate."
                )
        spiking = sum(rates[_fed_by(matrix)] * matrix.dense_exact for matrix in matrices)
        lines.append(Line(part, spiking, 0.0, 0.0, _dense(matrices)))
    wkv = float(sum(WKV_MACS * entry.updates for entry in _programs(counts, "wkv")))
    return Column("paper convention", (*lines, _multiplied("WKV", wkv), *_head(counts)), {})


def strict_convention(counts: Counts) -> Column:
    """What ran: an AC only where an operand is a spike; see above.

    Raises:
        ValueError: these are no counts of a SpikeGPT.
    """
    tokens = counts.T * counts.samples
    lines = []
    for part, matrices in _matrices(counts).items():
        ac = sum(int(layer_ac(matrix, DEFAULT_POLICY).sum()) for matrix in matrices) / tokens
        mac = _dense([matrix for matrix in matrices if books_mac(matrix, DEFAULT_POLICY)])
        lines.append(Line(part, ac, mac, 0.0, _dense(matrices)))
    wkv, shift = _programs(counts, "wkv"), _programs(counts, "mix")
    pairs: list[PairCount] = counts.of(PairCount)
    additions = [pair for pair in pairs if pair.op == "add"]
    spikes = sum(int(pair.both_nonzero.sum()) for pair in additions) / tokens
    lines += [
        _multiplied("WKV", _operations(wkv, "multiplies")),
        _multiplied("token shift", _operations(shift, "multiplies")),
        _multiplied("gates", float(sum(pair.numel for pair in pairs if pair.op == "mul"))),
        Line("residual additions", spikes, 0.0, float(sum(pair.numel for pair in additions)), 0.0),
        *_head(counts),
    ]
    maps: list[MapCount] = counts.of(MapCount)
    unpriced = {
        "exponentials": _operations(wkv, "transcendental"),
        "divisions": _operations(wkv, "divides"),
        "sigmoids": float(sum(entry.numel for entry in maps if entry.op == "sigmoid")),
    }
    return Column("strict", tuple(lines), unpriced)


def side_by_side(counts: Counts) -> str:
    """Both conventions as a table in plain text.

    Raises:
        ValueError: as `paper_convention`.
    """
    paper, strict = paper_convention(counts), strict_convention(counts)
    rates = firing_rates(counts)
    of_lifs = [rate for name, rate in rates.items() if ".lif" in name]
    rows = [
        f"per token, mean of {counts.T * counts.samples:,}; {AC_PJ} pJ per AC, {MAC_PJ} pJ per MAC (estimated, 45 nm)",
        f"firing rates: embedding {rates['binary']:.1%}, LIFs {sum(of_lifs) / len(of_lifs):.1%} "
        f"({min(of_lifs):.1%} to {max(of_lifs):.1%})",
        f"{'':<22}{paper.convention:^30}{strict.convention:^30}".rstrip(),
        f"{'':<22}{'AC':>15}{'MAC':>15}{'AC':>15}{'MAC':>15}",
    ]
    rows += [f"{line.part:<22}{_cells(paper, line.part)}{_cells(strict, line.part)}" for line in strict.lines]
    for title, head in (("without head", False), ("with head", True)):
        rows.append(title)
        for name in ("energy_pj", "ann_pj", "ratio"):
            cells = "".join(_cell(name, getattr(column, name)(head=head)) for column in (paper, strict))
            rows.append(f"  {_SAYS[name]:<20}{cells}")
    rows.append(
        "strictly also, without a price: " + ", ".join(f"{n:,.0f} {what}" for what, n in strict.unpriced.items())
    )
    return "\n".join(rows)


_SAYS = {"energy_pj": "energy, nJ", "ann_pj": "same ANN, nJ", "ratio": "ANN / network"}


def _cell(name: str, value: float) -> str:
    return f"{value:>30.2f}" if name == "ratio" else f"{value / 1e3:>30,.1f}"


def _cells(column: Column, part: str) -> str:
    line = column.line(part)
    return f"{'-':>15}{'-':>15}" if line is None else f"{line.ac:>15,.0f}{line.mac:>15,.0f}"


def _matrices(counts: Counts) -> dict[str, list[Layer]]:
    """The matrices of the blocks by part: a mixer with a WKV is a time-mix, any other a channel-mix.

    Raises:
        ValueError: there are none, or linear operations that SpikeGPT does not have.
    """
    found = [layer for layer in counts.layers if _MATRIX.fullmatch(layer.name)]
    others = [layer.name for layer in counts.layers if layer not in found and layer.name != HEAD]
    if not found or others:
        raise ValueError(
            f"These counts have {len(found)} matrices of SpikeGPT's blocks"
            f"{' and also ' + ', '.join(others[:3]) if others else ''}; expected those of `count(model)` around a "
            "SpikeGPT or SpikeGPTClassifier alone, whose names begin with blocks.0."
        )
    mixing = {entry.name.removesuffix(".wkv") for entry in _programs(counts, "wkv")}
    parts: dict[str, list[Layer]] = {"R, K, V, O": [], "channel-mix": []}
    for layer in found:
        parts["R, K, V, O" if layer.name.rpartition(".")[0] in mixing else "channel-mix"].append(layer)
    return parts


def _fed_by(matrix: Layer) -> str:
    """The neurons whose spikes were added last to what a mixer reads."""
    match = _MATRIX.fullmatch(matrix.name)
    assert match is not None
    block, mixer = int(match[1]), match[2]
    if mixer == "ffn":
        return f"blocks.{block}.lif1"
    return f"blocks.{block - 1}.lif2" if block else "binary"


def _dense(layers: list[Layer]) -> float:
    return float(sum(layer.dense_exact for layer in layers))


def _programs(counts: Counts, kind: str) -> list[NeuronCount]:
    """The recurrences of the mixers that are no neurons: "mix" or "wkv"."""
    named = ((entry, _PROGRAM.fullmatch(entry.name)) for entry in counts.of(NeuronCount))
    return [entry for entry, match in named if match is not None and match[3] == kind]


def _operations(entries: list[NeuronCount], kind: str) -> float:
    return float(sum(entry.operations[kind] * entry.updates for entry in entries))


def _multiplied(part: str, mac: float) -> Line:
    return Line(part, 0.0, mac, 0.0, mac)


def _head(counts: Counts) -> Iterator[Line]:
    """It reads a LayerNorm. A classifier runs it once per text, so a token has a share of it."""
    for layer in counts.layers:
        if layer.name == HEAD:
            yield _multiplied(HEAD, layer.dense_exact / (counts.T if layer.once else 1))
