"""The tables of what is not a linear operation: neurons, normalisations, pools, additions, and what has no rule."""

from __future__ import annotations

from spikeloom.energy.arithmetic import neuron_arithmetic
from spikeloom.energy.conventions import basis
from spikeloom.energy.counts import IntArray, MapCount, NeuronCount, NormCount, PairCount, PoolCount, SumCount
from spikeloom.energy.report import Report
from spikeloom.energy.tables import Cell, Head, Table
from spikeloom.energy.units import count_text, rate_text


def neuron_table(report: Report) -> Table:
    """Layers of neurons: rates, spikes, updates."""
    heads = [
        Head("neurons", number=False),
        Head("model", number=False),
        Head("number"),
        Head("rate"),
        Head("spikes"),
        Head("spike units", keep=2),
        Head("updates", keep=6),
        Head("with input", keep=5),
        Head("states", keep=3),
        Head("arithmetic per update", number=False, keep=4, wrap=20),
    ]
    table = Table("Neurons", heads)
    T = report.counts.T
    for neuron in report.counts.of(NeuronCount):
        spikes = _mean(report, neuron.spikes)
        table.add(
            neuron.name,
            neuron.model + (", soft reset" if neuron.soft_reset else ""),
            count_text(neuron.updates),
            rate_text(spikes / (neuron.updates * T)) if neuron.spiking and neuron.updates else "read-out",
            count_text(spikes) if neuron.spiking else "-",
            "-" if neuron.spike_units is None else count_text(_mean(report, neuron.spike_units)),
            count_text(neuron.updates * T),
            count_text(_mean(report, neuron.touched)),
            str(neuron.states),
            _arithmetic(neuron),
            style="" if neuron.spikes.shape == (T, report.counts.samples) else "warn",
        )
    table.note = (
        f"{basis(report.counts)}. Rate: spikes per neuron and step. With input: updates whose input current is not 0. "
        f"Neuron arithmetic is {'in the energy' if report.policy.include_neurons else 'in no total'}."
    )
    return table


def norm_table(report: Report) -> Table:
    """Batch normalisations, folded or charged."""
    table = Table(
        "Batch normalisations", [Head("norm", number=False), Head("elements"), Head("charged", number=False, wrap=40)]
    )
    for norm in report.counts.of(NormCount):
        if report.policy.bn == "fold" and norm.folds_into is not None:
            table.add(
                norm.name,
                count_text(norm.elements),
                f"no: folds into {norm.folds_into}, a bias of {norm.bias_after_fold:,}",
            )
        else:
            why = "cannot fold" if norm.folds_into is None else "policy bn = count"
            table.add(norm.name, count_text(norm.elements), Cell(f"1 MAC per element and step: {why}", "warn"))
    table.note = "Elements: per time step and sample."
    return table


def other_table(report: Report) -> Table:
    """Pools, residual additions, masks, sums, and operations listed by their elements."""
    heads = [Head("operation", number=False), Head("sort", number=False), Head("AC"), Head("events"), Head("elements")]
    table = Table(
        "Pools, additions and the rest",
        [*heads, Head("output kind", number=False), Head("convention", number=False, keep=4, wrap=30)],
    )
    for entry in report.counts.aux:
        if isinstance(entry, PairCount):
            both = count_text(_mean(report, entry.both_nonzero))
            add = entry.op == "add"
            how = "AC: both operands non-zero" if add else "a mask: no AC; events: both non-zero"
            table.add(entry.name, entry.op, both if add else "0", both, count_text(entry.numel), entry.out_kind, how)
        elif isinstance(entry, PoolCount):
            average, seen = "avg" in entry.op, count_text(_mean(report, entry.incidences))
            how = f"{'AC' if average else 'compare events, no AC'}: (non-zero input, window) pairs"
            table.add(
                entry.name, entry.op, seen if average else "0", seen, count_text(entry.out_numel), entry.out_kind, how
            )
        elif isinstance(entry, SumCount):
            seen = count_text(_mean(report, entry.events))
            table.add(entry.name, "sum", seen, seen, count_text(entry.numel), entry.out_kind, "AC: one per event")
        elif isinstance(entry, MapCount):
            table.add(entry.name, entry.op, "0", "-", count_text(entry.numel), entry.out_kind, "no AC, no MAC; listed")
    included = "in the energy" if report.policy.include_aux else "in no total"
    table.note = f"{basis(report.counts)}; elements: per time step and sample. These ACs are {included}."
    return table


def uncounted_table(report: Report) -> Table:
    """Operations without a rule and layers whose rows could not be told apart."""
    heads = [
        Head("operation", number=False),
        Head("where", number=False),
        Head("calls"),
        Head("elements"),
        Head("what", number=False, wrap=34),
    ]
    table = Table("Not counted, or not told apart", heads)
    for entry in report.counts.uncounted:
        where = entry.module or "the model"
        what = "no counting rule: in no number"
        table.add(Cell(entry.op, "warn"), where, f"{entry.calls:,}", count_text(entry.numel), what, style="warn")
    for layer in report.counts.layers:
        if not layer.assigned:
            what = f"‡ sums over the run only: {layer.notes[-1] if layer.notes else 'rows are no multiple of T*B'}"
            table.add(
                Cell(layer.op, "warn"), layer.name, str(layer.calls), count_text(layer.in_numel), what, style="warn"
            )
    table.note = (
        "Register a rule with spikeloom.energy.register_op; count(..., strict=True) fails at such an operation."
    )
    return table


def memory_table(report: Report) -> Table:
    """Words that an event-driven machine moves."""
    table = Table("Memory words", [Head("words", number=False), Head("per inference")])
    for name, words in report.totals.memory_words.items():
        table.add(name.replace("_", " "), count_text(float(words.mean())))
    machine = "an event-driven machine that accumulates in place: a weight and an accumulator per SOP"
    table.note = f"{basis(report.counts)}; {machine}."
    return table


def _mean(report: Report, array: IntArray) -> float:
    return float(array.sum()) / report.counts.samples


def _arithmetic(neuron: NeuronCount) -> str:
    """`1 MAC, 1 compare`; of the loom's tape where the model is not in the list of conventions."""
    found = neuron_arithmetic(neuron)
    if found is not None and neuron.updates:
        numbers = {"AC": found.ac, "MAC": found.mac, "compare": found.compare, "round": found.round}
        words = ", ".join(f"{n // neuron.updates} {name}" for name, n in numbers.items() if n)
        return words + (", 1 AC per spike" if found.reset_ac.any() else "")
    tape = ", ".join(f"{n} {name}" for name, n in neuron.operations.items() if n)
    return f"not in the convention; as written: {tape}" if tape else "unknown"
