"""ILIF against numbers calculated by hand and against the official code's integer neurons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from spikeloom.neurons import ILIF

_ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted(
    {
        f.name: f
        for folder in (_ROOT.parent / "shared" / "golden", _ROOT / "tests" / "golden")
        for f in folder.rglob("multispike_*.safetensors")
    }.values()
)


def test_five_steps_by_hand() -> None:
    """tau = 2, at most 3 spikes: h = v / 2 + x. Half rounds to even: 2.5 -> 2, 1.5 -> 2."""
    x = torch.tensor([2.5, 1.25, 9.0, -4.0, 0.75])[:, None]
    #        h =      2.5  1.5   8.75  -1.125  .1875
    #        v =      0.5  -0.5  5.75  -1.125  .1875
    counts, (v,) = ILIF(2.0, max_spikes=3)(x, return_state=True)
    assert counts[:, 0].tolist() == [2.0, 2.0, 3.0, 0.0, 0.0]
    assert v.item() == 0.1875


def test_half_up_differs_at_ties_and_at_the_ends_of_the_interval() -> None:
    x = torch.tensor([[0.5, 2.5, 0.0, 4.0, 3.0, 5.0]], requires_grad=True)
    even = ILIF()(x)
    assert even.tolist() == [[0.0, 2.0, 0.0, 4.0, 3.0, 4.0]]
    even.sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
    x.grad = None
    up = ILIF(rounding="half_up")(x)
    assert up.tolist() == [[1.0, 3.0, 0.0, 4.0, 3.0, 4.0]]
    up.sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0, 0.0, 0.0, 1.0, 0.0]]


def test_threshold_is_what_one_spike_stands_for() -> None:
    counts, (v,) = ILIF(v_threshold=0.5, norm=4.0)(torch.tensor([[1.1]]), return_state=True)
    assert counts.item() == 0.5  # 2 of 4
    torch.testing.assert_close(v, torch.tensor([0.1]))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_official_integer_neuron(path: Path) -> None:
    """One step from rest is `MultiSpike` (Model_Base, half to even) and `Multispike` (Model_Large, half up)."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    layer = ILIF(
        max_spikes=config.get("max_value", 4),
        norm=config.get("Norm", config.get("norm")),
        rounding="half_even" if "even" in config["rounding"] else "half_up",
    )
    x = tensors["in.x"].double()[None].requires_grad_()
    y = layer(x)
    y.backward(tensors["in.cotangent"].double()[None])
    assert torch.equal(y[0], tensors["out.y"])
    assert torch.equal(x.grad[0], tensors["grad.in.x"])
