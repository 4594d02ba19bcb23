"""Kernels and layers. The official ones take [B, I, T] and [B, C, H, W]; ours put time first."""

from __future__ import annotations

from typing import Any

import torch
from spikeloom_tests.golden.delays.stored import Stored, close, same
from torch import Tensor
from torch.nn import functional as F

from spikeloom import Stream
from spikeloom.synapses import Dcls1d, Dcls2d, Dcls2dK1d, DelayConv1d, IntegerDelays, construct_1d

CLASSES: dict[str, type[Dcls1d] | type[Dcls2d] | type[Dcls2dK1d]] = {
    "Dcls1d": Dcls1d,
    "Dcls2d": Dcls2d,
    "Dcls2dK1d": Dcls2dK1d,
}


def built(file: Stored) -> Any:
    """The layer with the file's parameters, strictly."""
    options = {key: value for key, value in file.config.items() if key not in ("cls", "external_zero_pad_last_dim")}
    layer = CLASSES[file.config["cls"]](**options).double()
    layer.load_state_dict(file.part("state."))
    return layer


def check_kernel(file: Stored) -> None:
    """The dense kernel and its gradients."""
    layer = built(file)
    kernel = layer.kernel()
    close(kernel, file["out.kernel"], 1e-10, "kernel")
    kernel.backward(file["in.cotangent"])
    check_gradients(layer, file)


def check_gradients(layer: Any, file: Stored) -> None:
    """Of all parameters."""
    expected = {key: value for key, value in file.part("grad.").items() if not key.startswith("input")}
    parameters = dict(layer.named_parameters())
    assert expected.keys() == parameters.keys()
    for key, value in expected.items():
        close(parameters[key].grad, value, 1e-10, f"grad.{key}")
    if layer.version == "v1" and torch.equal(layer.P, layer.P.round()):
        assert not parameters["P"].grad.any()


def check_layer(file: Stored) -> None:
    """Output and gradients of a whole layer."""
    layer, x = built(file), file["in.x"].clone().requires_grad_()
    padding = file.config.get("external_zero_pad_last_dim") or [0, 0]
    padded = F.pad(x, padding)
    time = file.config["cls"] == "Dcls1d"
    y = layer(padded.permute(2, 0, 1)).permute(1, 2, 0) if time else layer(padded[None])[0]
    close(y, file["out.y"], 1e-10, "y")
    y.backward(file["in.cotangent"])
    assert x.grad is not None
    close(x.grad, file["grad.input.x"], 1e-10, "grad.x")
    check_gradients(layer, file)
    if any(padding):
        twin = delayed(file, tail="official")
        assert padding == [twin.size[0] - 1, twin.tail_steps]
        close(twin(file["in.x"].permute(2, 0, 1)).permute(1, 2, 0), file["out.y"], 1e-10, "y of DelayConv1d")


def delayed(file: Stored, tail: Any, version: str | None = None) -> DelayConv1d:
    """The synapses with delays that a file describes, with its weights and positions."""
    config = file.config
    sizes = config["in_channels"], config["out_channels"], config["kernel_count"], config["dilated_kernel_size"]
    options = {"groups": config.get("groups", 1), "bias": config.get("bias", False)}
    layer = DelayConv1d(*sizes, tail=tail, version=version or config["version"], **options).double()
    state = file.part("state.")
    if layer.SIG is not None:
        state.setdefault("SIG", torch.zeros_like(layer.SIG))
    layer.load_state_dict(state)
    return layer


def check_stream(file: Stored) -> None:
    """Rounded delays: all versions, gather and scatter, chunks, and what is on the way at the checkpoint."""
    ticks, x = file.config["checkpoint_after_ticks"], file["in.x"]
    for version in ("max", "v1", "v0", "gauss"):
        layer = delayed(file, "none", version)
        layer.round_positions_()
        same(layer.delays(), file["in.delay"], "delay")
        if version == "gauss":
            layer.version = "gauss"  # with SIG = 0, where it is not the same
            close(layer(x), file["out.y_gauss_sig0"], 1e-12, version)
            continue
        expected = file[f"out.y_{version}"]
        close(layer(x), expected, 1e-12, version)
        check_forms(IntegerDelays.of(layer), x, expected, file if version == "max" else None, ticks)
        for sizes in ([ticks, len(x) - ticks], [1] * len(x), [2, len(x) - 2]):
            stream = Stream(layer)
            close(torch.cat([stream(chunk).detach() for chunk in x.split(sizes)]), expected, 1e-12, f"chunks {sizes}")
        stream = Stream(layer)
        stream(x[:ticks])
        same(stream.state["#0"][0], file["out.ring_at_checkpoint"], "ring of the stream")
    check_float32(file)


def check_forms(synapses: IntegerDelays, x: Tensor, expected: Tensor, file: Stored | None, ticks: int) -> None:
    """Both forms in two chunks, and the same number of operations in both."""
    gather, scatter = synapses.begin(x.shape[1], "gather"), synapses.begin(x.shape[1], "scatter")
    first = synapses.gather(x[:ticks], gather), synapses.scatter(x[:ticks], scatter, until=len(x))
    if file is not None:
        same(gather.slots, file["out.ring_at_checkpoint"], "ring")
        close(scatter.slots, file["out.pending_at_checkpoint"], 1e-12, "pending")
    rest = synapses.gather(x[ticks:], gather), synapses.scatter(x[ticks:], scatter, until=len(x))
    for form, begin, end in zip(("gather", "scatter"), first, rest, strict=True):
        close(torch.cat([begin, end]), expected, 1e-12, form)
    assert gather.events == scatter.events > 0


def check_float32(file: Stored) -> None:
    """The kernel of version max in float32, bit for bit where a tap has one element."""
    weight, positions = file["in.weight_f32"], file["state.P"].float()
    layer = delayed(file, "none", "max").float()
    with torch.no_grad():
        layer.P.copy_(positions)
    layer.round_positions_()
    kernel = construct_1d(weight, layer.P, layer.SIG, layer.size[0], "max")
    if layer.kernel_count == 1:
        same(kernel, file["out.kernel_f32_max"], "float32 kernel")
    close(kernel, file["out.kernel_f32_max"], 1e-6, "float32 kernel")
