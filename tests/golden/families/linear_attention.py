"""Golden causal linear attention: every recurrence in chunks of several sizes, and the spiking layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from spikeloom_tests.golden.stored import Stored, read
from torch import Tensor

from spikeloom.spiking_attention.causal_linear import attend, attend_delta, slopes
from spikeloom.spiking_attention.spiking_linear import SpikingLinearAttention

CHUNKS = (1, 4, 7, 16, 64)
PARTS = {
    **{"Wq": "q_proj", "Wk": "k_proj", "Wv": "v_proj", "Wo": "out_proj"},
    **{"nq": "q_norm", "nk": "k_norm", "nv": "v_norm"},
}


def variants(path: Path) -> list[str]:
    """In both precisions, in single precision on a GPU too."""
    return ["float64", "float32", "cuda"]


def check(path: Path, variant: str) -> None:
    """Compare a file in one way, in every size of chunk."""
    file = read(path)
    dtype, device = (torch.float64 if variant == "float64" else torch.float32), "cuda" if variant == "cuda" else "cpu"
    for chunk in CHUNKS:
        if "kind" in file.config:
            check_recurrence(file, chunk, dtype, device)
        else:
            check_layer(file, chunk, dtype, device)


def near(found: Tensor | None, expected: Tensor, what: str) -> None:
    """Within 1e-10 of the largest entry (or of 1) in double, 5e-5 of it in single precision."""
    assert found is not None, what
    largest = expected.abs().max().item()
    limit = 1e-10 * max(1.0, largest) if found.dtype == torch.float64 else 5e-5 * largest
    gap = (found.detach().cpu().double() - expected).abs().max().item()
    assert gap <= limit, f"{what}: {gap:.3g} apart, {limit:.3g} allowed"


def check_recurrence(file: Stored, chunk: int, dtype: torch.dtype, device: str) -> None:
    kind, scale = file.config["kind"], file.config["scale"]
    names = [name for name in ("q", "k", "v", "g", "beta", "S0") if f"in.{name}" in file.tensors]
    given = {name: file[f"in.{name}"].to(device, dtype).requires_grad_() for name in names}
    if kind == "lightning":
        rates = slopes(file.config["H"], file.config["layer_idx"], file.config["num_layers"])
        assert torch.equal(rates, file["in.slope"].double())
        given["g"] = -file["in.slope"].to(device, dtype)
    ways = {"delta": ("plain", "gated"), "gdn": ("gated",)}.get(kind, ("decay",))
    for way in ways:
        for tensor in given.values():
            tensor.grad = None
        options: Any = {"scale": scale, "state": given.get("S0"), "chunk": chunk}
        q, k, v, g = (given[name] for name in "qkvg")
        if way == "decay":
            o, S = attend(q, k, v, g, **options)
        else:
            o, S = attend_delta(q, k, v, given["beta"], g if way == "gated" else None, **options)
        loss = (o * file["in.cotangent"].to(device, dtype)).sum()
        if "in.cotangent_state" in file.tensors:
            loss = loss + (S * file["in.cotangent_state"].to(device, dtype)).sum()
        loss.backward()
        near(o, file["out.o"], f"o, chunks of {chunk}")
        near(S, file["out.final_state"], f"state, chunks of {chunk}")
        for name, expected in file.part("grad.").items():
            if not (way == "plain" and name == "g"):
                near(given[name].grad, expected, f"gradient of {name}, chunks of {chunk}")


def check_layer(file: Stored, chunk: int, dtype: torch.dtype, device: str) -> None:
    c = file.config
    layer = SpikingLinearAttention(
        c["dim"],
        c["heads"],
        decay_rate=file["in.decay_rate"],
        scale=c["scale"],
        tau=c["tau"],
        v_threshold=c["v_threshold"],
        attn_v_threshold=c["attn_v_threshold"],
        chunk=chunk,
    ).double()
    layer.decay_rate.copy_(file["in.decay_rate"])
    layer.load_state_dict({f"{PARTS[key]}.weight": value for key, value in file.part("state.").items()}, strict=False)
    layer.to(device, dtype)
    spikes: dict[str, Tensor] = {}
    for name, module in (("q", "q_lif"), ("k", "k_lif"), ("v", "v_lif"), ("o", "attn_lif")):
        layer.get_submodule(module).register_forward_hook(
            lambda m, given, out, name=name: spikes.update({name: out[0].detach().cpu()})
        )
    y, state = layer(file["in.x"].to(device, dtype), return_state=True)
    y.backward(file["in.cotangent"].to(device, dtype))
    for name, expected in file.part("out.spike.").items():
        assert torch.equal(spikes[name].double(), expected.double()), name
    near(y, file["out.y"], "y")
    for i, name in enumerate("qkvo"):
        near(state[i][0], file[f"out.state.{name}"], f"membrane of {name}")
    near(state[4], file["out.state.S"], "S")
    gradients = file.part("grad.")
    assert {f"{PARTS[key]}.weight" for key in gradients} == {name for name, _ in layer.named_parameters()}
    for key, expected in gradients.items():
        near(layer.get_parameter(f"{PARTS[key]}.weight").grad, expected, f"gradient of {key}")
