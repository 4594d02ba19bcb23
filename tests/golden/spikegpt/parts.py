"""Golden parts: WKV with its state and gradients, first values, sampling distributions."""

from __future__ import annotations

import torch
from spikeloom_tests.golden.spikegpt.build import close, relatively_close
from spikeloom_tests.golden.stored import Stored
from torch import Tensor

from spikeloom.models import next_token_probabilities
from spikeloom.models.spikegpt_init import channel_mix_values, time_mix_values
from spikeloom.spiking_attention import WKV


def check_wkv(file: Stored, dtype: torch.dtype, device: str) -> None:
    """Result, state and gradients; those of a pair of calls that carry the state too."""
    T = file["in.k"].shape[1]
    for pieces in {(T,), (T // 2, T - T // 2) if T > 1 else (T,)}:
        _check_wkv(file, dtype, device, pieces)


def _check_wkv(file: Stored, dtype: torch.dtype, device: str, pieces: tuple[int, ...]) -> None:
    def given(name: str) -> Tensor:
        return file[f"in.{name}"].to(device, dtype)

    net = WKV(given("time_decay"), given("time_first"))
    k, v = (given(name).transpose(0, 1).contiguous().requires_grad_() for name in "kv")
    results, state = [], None
    for keys, values in zip(k.split(pieces), v.split(pieces), strict=True):
        y, state = net(keys, values, state=state, return_state=True)
        results.append(y)
    assert state is not None
    y = torch.cat(results)
    y.backward(given("cotangent").transpose(0, 1))
    exact, extreme = dtype == torch.float64, file.config["extreme"]
    tight = (1e-8 if extreme else 1e-10) if exact else 1e-3
    relatively_close(y.transpose(0, 1), file["out.y"], tight if exact else 5e-5, "y")
    for name, value in zip("pqo", state, strict=True):
        relatively_close(value, file[f"out.state_{name}"], tight, f"state {name}")
    gradients = {"k": k.grad, "v": v.grad}
    found = {name: None if value is None else value.transpose(0, 1) for name, value in gradients.items()}
    found |= {"time_decay": net.get_parameter("time_decay").grad, "time_first": net.get_parameter("time_first").grad}
    for name, gradient in found.items():
        relatively_close(gradient, file[f"grad.{name}"], tight, f"gradient of {name}")


def check_first_values(file: Stored) -> None:
    """The vectors of every layer."""
    compared = set()
    for case in file.config["cases"]:
        depth, features = case["n_layer"], case["n_embd"]
        for layer in range(depth):
            place = f"out.L{depth}_C{features}.blocks.{layer}"
            for part, values in (("att", time_mix_values), ("ffn", channel_mix_values)):
                for name, value in values(features, layer, depth).items():
                    close(value, file[f"{place}.{part}.{name}"], 1e-6, f"{place}.{part}.{name}")
                    compared.add(f"{place}.{part}.{name}")
    assert compared == file.tensors.keys()


def check_sampling(file: Stored) -> None:
    """Every case but that of top_p = 1, in which the official result hangs on rounding."""
    for j, case in enumerate(file.config["cases"]):
        newline = case["mode"] == "char" and case["last_token"] == file.config["newline_token"]
        top_p = case["top_p_newline"] if newline else case["top_p"]
        if top_p >= 1:
            continue
        found = next_token_probabilities(file[f"in.{j}.logits"], top_p, case["temperature"])
        close(found, file[f"out.{j}.probs"], 1e-10, f"case {j}")
