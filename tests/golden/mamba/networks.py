"""A whole network against a file: parts on the way, firing rates, logits, gradients, running statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikeloom_tests.golden.mamba.stored import agree
from spikeloom_tests.golden.stored import Stored
from torch import Tensor, nn

Place = Callable[[str], str]


def variants_of_networks() -> list[str]:
    """In both precisions, in single precision on a GPU too."""
    return ["float64", "float32", "cuda"]


def precision(variant: str) -> tuple[torch.dtype, str]:
    """Type and device of a variant."""
    return (torch.float64 if variant == "float64" else torch.float32), ("cuda" if variant == "cuda" else "cpu")


def compare(
    file: Stored,
    model: nn.Module,
    call: Callable[[Tensor], Tensor],
    place: Place,
    neuron: Place,
    variant: str,
) -> None:
    """Everything that a file says of one call.

    Args:
        model: in float64, with the file's parameters. call: the file's input -> logits `[B, K]`.
        place: the file's name of a module or parameter -> ours. neuron: its name of a neuron -> our module that fires.
    """
    dtype, device = precision(variant)
    single, train = dtype == torch.float32, file.meta["mode"] == "train"
    model.to(dtype).to(device).train(train)
    x = file["in.x"].to(device, dtype).requires_grad_(train)
    parts = [name for name in file.part("out.") if not name.startswith("logits")]
    rates: dict[str, float] = file.config["firing_rates"]
    seen: dict[str, list[Tensor]] = {}
    handles = [watch(model, place(name), seen) for name in parts]
    handles += [watch(model, neuron(name), seen) for name in rates if neuron(name) not in seen]
    with torch.backends.cudnn.flags(allow_tf32=False), torch.set_grad_enabled(train):
        logits = call(x)
        if "out.logits_second_call_without_reset" in file.tensors:
            agree(call(x), file["out.logits_second_call_without_reset"], single, "second call")
        if train:
            logits.backward(file["in.cotangent"].to(device, dtype))
    for handle in handles:
        handle.remove()
    exact = not single or file.config["min_abs_threshold_margin"] > 1e-5
    for name, rate in rates.items():
        spikes = torch.cat([part.flatten() for part in seen[neuron(name)]])
        assert not (spikes * (1 - spikes)).any(), name
        found = spikes.double().mean().item()
        assert abs(found - rate) <= (5.01e-4 if exact else 2e-3), (name, found, rate)
    if not exact:  # a membrane next to its threshold may round to its other side
        return
    for name in parts:
        agree(seen[place(name)][0], file[f"out.{name}"], single, name)
    agree(logits, file["out.logits"], single, "logits")
    if train:
        gradients(file, model, x, place, single)
        for name, expected in file.part("after.").items():
            agree(model.state_dict()[place(name)], expected, single, name)


def watch(model: nn.Module, name: str, seen: dict[str, list[Tensor]]) -> Any:
    """Keep what a module gives, call by call; of several inputs at once, `[K, M, N, C]`, the first."""
    kept = seen.setdefault(name, [])
    module = model.get_submodule(name)

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        kept.append((out[0] if type(module).__name__ == "Attention" else out).detach().cpu())

    return module.register_forward_hook(keep)


def gradients(file: Stored, model: nn.Module, x: Tensor, place: Place, single: bool) -> None:
    """Of every parameter and of the input."""
    expected = file.part("grad.")
    agree(x.grad, expected.pop("in.x"), single, "gradient of x")
    assert {place(name) for name in expected} == {name for name, _ in model.named_parameters()}
    for name, theirs in expected.items():
        ours = model.get_parameter(place(name)).grad
        assert ours is not None, name
        if single and theirs.abs().max() < 1e-9:  # cancels in front of a normalisation by the batch's statistics
            assert ours.abs().max().item() <= 1e-5, name
        else:
            agree(ours, theirs, single, f"gradient of {name}")
