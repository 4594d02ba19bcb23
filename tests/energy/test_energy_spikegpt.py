"""SpikeGPT's energy in its paper's convention and strictly, from what the counter finds in networks that fire."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom import Stream
from spikeloom.energy import Counts, Totals, count, load, save
from spikeloom.energy.counts import NeuronCount
from spikeloom.energy.spikegpt_convention import (
    Column,
    Line,
    firing_rates,
    paper_convention,
    side_by_side,
    strict_convention,
)
from spikeloom.models import SpikeGPT, SpikeGPTClassifier, SpikeGPTConfig
from spikeloom.neurons import LIF
from spikeloom.synapses import Linear

V, C, L, T, B = 23, 16, 3, 12, 3


def firing(**options: Any) -> SpikeGPT:
    """A small model whose neurons fire."""
    torch.manual_seed(0)
    model = SpikeGPT(SpikeGPTConfig(vocab_size=V, embed_dim=C, depth=L, **options)).double().eval()
    with torch.no_grad():
        for name, parameter in model.blocks.named_parameters():
            if name.endswith(("output.weight", "value.weight")):
                parameter.mul_(6)
            elif name.endswith(("receptance.weight", "key.weight")):
                parameter.mul_(3)
    return model


def ids(texts: int = B) -> Tensor:
    return torch.randint(V, (T, texts), generator=torch.Generator().manual_seed(0))


def counted(model: nn.Module, texts: int = B, pieces: list[int] | None = None) -> Counts:
    """Counts of one call, or of a stream in pieces."""
    with torch.no_grad(), count(model, strict=True) as run, run.batch(T=T, B=texts):
        if pieces is None:
            model(ids(texts))
        else:
            stream = Stream(model)
            for tokens in ids(texts).split(pieces):
                stream(tokens)
    return run.counts()


def spikes_by_hook(model: SpikeGPT) -> dict[str, float]:
    """Mean output of the embedding and of every LIF."""
    rates: dict[str, float] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: rates.update({name: output.double().mean().item()})

    named = [(name, module) for name, module in model.named_modules() if isinstance(module, LIF) or name == "binary"]
    handles = [module.register_forward_hook(keep(name)) for name, module in named]
    with torch.no_grad():
        model(ids())
    for handle in handles:
        handle.remove()
    return rates


def line(column: Column, part: str) -> Line:
    found = column.line(part)
    assert found is not None
    return found


def test_dropout_in_training_is_among_the_gates() -> None:
    """So counts are taken in eval mode, as the module says."""
    model = firing(dropout=0.1)
    assert line(strict_convention(counted(model)), "gates").mac == 2 * C * L
    assert line(strict_convention(counted(model.train())), "gates").mac == 3 * C * L


def test_strictly_every_matrix_is_a_mac_and_spikes_are_added_only_to_the_residual() -> None:
    model = firing()
    column, rates = strict_convention(counted(model)), spikes_by_hook(model)
    assert sum(rate > 0 for rate in rates.values()) == 2 * L + 1
    lifs = sum(rate for name, rate in rates.items() if name != "binary")
    assert [(each.part, each.ac, each.mac) for each in column.lines] == [
        ("R, K, V, O", 0, 4 * C * C * L),
        ("channel-mix", 0, 9 * C * C * L),
        ("WKV", 0, 6 * C * L),
        ("token shift", 0, 10 * C * L),
        ("gates", 0, 2 * C * L),
        ("residual additions", pytest.approx(C * lifs, rel=1e-12), 0),
        ("head", 0, V * C),
    ]
    assert line(column, "residual additions").ann_ac == 2 * C * L
    assert column.unpriced == {"exponentials": 4 * C * L, "divisions": C * L, "sigmoids": 2 * C * L}
    energy = 4.6 * (13 * C * C + 18 * C) * L + 0.9 * C * lifs
    assert column.energy_pj(head=False) == pytest.approx(energy)
    assert column.energy_pj(head=True) == pytest.approx(energy + 4.6 * V * C)
    assert column.ratio(head=True) == pytest.approx(1.0, abs=0.01)


def test_the_counter_books_no_accumulate_in_a_linear_operation() -> None:
    counts = counted(firing())
    totals = Totals(counts)
    assert not counts.uncounted
    assert {layer.kind for layer in counts.layers} == {"float"}
    assert totals.ac.sum() == 0
    assert totals.mac_dense_exact == 13 * C * C * L + V * C
    lifs = [entry for entry in counts.of(NeuronCount) if entry.model == "lif"]
    assert totals.residual_ac.sum() == sum(entry.spikes.sum() for entry in lifs) > 0


def test_the_papers_rates_are_those_of_the_neurons_behind_the_mixers_input() -> None:
    model = firing()
    column, rates = paper_convention(counted(model)), spikes_by_hook(model)
    mix = sum(rates[name] for name in ("binary", "blocks.0.lif2", "blocks.1.lif2"))
    feed = sum(rates[f"blocks.{block}.lif1"] for block in range(L))
    assert [(each.part, each.ac, each.mac, each.ann_mac) for each in column.lines] == [
        ("R, K, V, O", pytest.approx(4 * C * C * mix), 0, 4 * C * C * L),
        ("channel-mix", pytest.approx(9 * C * C * feed), 0, 9 * C * C * L),
        ("WKV", 0, 6 * C * L, 6 * C * L),
        ("head", 0, V * C, V * C),
    ]
    ann, energy = 4.6 * (13 * C * C + 6 * C) * L, 0.9 * C * C * (4 * mix + 9 * feed) + 4.6 * 6 * C * L
    assert column.ratio(head=False) == pytest.approx(ann / energy)
    assert column.ratio(head=True) == pytest.approx((ann + 4.6 * V * C) / (energy + 4.6 * V * C))
    assert firing_rates(counted(model)) == pytest.approx(rates)


@pytest.mark.parametrize("texts", [1, B])
@pytest.mark.parametrize("pieces", [[1] * T, [5, 5, 2], [10, 1, 1]], ids=["token_by_token", "pieces", "prompt"])
def test_a_stream_counts_the_same(texts: int, pieces: list[int]) -> None:
    model = firing()
    whole, streamed = counted(model, texts), counted(model, texts, pieces)
    assert paper_convention(streamed) == paper_convention(whole)
    assert strict_convention(streamed) == strict_convention(whole)
    for name in ("ac", "mac_effective", "residual_ac"):
        assert (getattr(Totals(streamed), name) == getattr(Totals(whole), name)).all(), name


def test_the_first_block_may_have_a_second_channel_mix() -> None:
    model = firing(ffn_pre=True)
    counts, rates = counted(model), spikes_by_hook(model)
    strict, paper = strict_convention(counts), paper_convention(counts)
    assert line(strict, "R, K, V, O").mac == 4 * C * C * (L - 1)
    assert line(strict, "channel-mix").mac == 9 * C * C * (L + 1)
    assert line(strict, "token shift").mac == (10 * L - 2) * C
    feed = rates["binary"] + sum(rates[f"blocks.{block}.lif1"] for block in range(L))
    assert line(paper, "channel-mix").ac == pytest.approx(9 * C * C * feed)
    assert strict.unpriced["exponentials"] == 4 * C * (L - 1)


def test_a_classifier_reads_out_once_per_text() -> None:
    counts = counted(SpikeGPTClassifier.of(firing(), num_classes=2))
    assert line(strict_convention(counts), "head").mac == line(paper_convention(counts), "head").mac == 2 * C / T


def test_silent_neurons_cost_the_paper_nothing_in_the_channel_mix() -> None:
    counts = counted(firing(v_threshold=1e6))
    column = paper_convention(counts)
    rate = firing_rates(counts)["binary"]
    assert line(column, "channel-mix").ac == 0
    assert line(column, "R, K, V, O").ac == pytest.approx(4 * C * C * rate)
    assert Column("empty", (), {}).ratio(head=True) == math.inf


def test_both_columns_are_printed_and_stored_counts_print_the_same(tmp_path: Path) -> None:
    counts = counted(firing())
    printed = side_by_side(counts)
    lines = printed.splitlines()
    assert lines[0].startswith("per token, mean of 36; 0.9 pJ per AC, 4.6 pJ per MAC")
    assert lines[1].startswith("firing rates: embedding 5")
    assert lines[2].split() == ["paper", "convention", "strict"]
    assert next(x for x in lines if x.startswith("token shift")).split()[2:] == ["-", "-", "0", "480"]
    assert lines[-1] == "strictly also, without a price: 192 exponentials, 48 divisions, 96 sigmoids"
    paper, strict = paper_convention(counts), strict_convention(counts)
    ratios = [line.split()[-2:] for line in lines if "ANN / network" in line]
    assert ratios == [[f"{c.ratio(head=head):.2f}" for c in (paper, strict)] for head in (False, True)]
    save(counts, tmp_path / "counts.json.gz")
    assert side_by_side(load(tmp_path / "counts.json.gz")) == printed


def test_real_valued_embeddings_have_no_rate() -> None:
    counts = counted(firing(embedding="raw"))
    assert line(strict_convention(counts), "channel-mix").mac == 9 * C * C * L
    with pytest.raises(ValueError, match=r'blocks\.0\.att\.key is behind binary.*embedding="binary"'):
        paper_convention(counts)


def test_counts_of_another_network_are_refused() -> None:
    with torch.no_grad(), count(net := nn.Sequential(Linear(4, 3))) as run:
        net(torch.rand(2, 1, 4))
    with pytest.raises(ValueError, match=r"0 matrices of SpikeGPT's blocks and also 0; expected"):
        strict_convention(run.counts())
