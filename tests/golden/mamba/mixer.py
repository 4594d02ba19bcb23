"""Golden Mamba mixers: results, gradients, and the states behind the last token."""

from __future__ import annotations

from pathlib import Path

import torch
from spikeloom_tests.golden.mamba.stored import agree
from spikeloom_tests.golden.stored import read

from spikeloom.spiking_attention.mamba import MambaMixer


def variants(path: Path) -> list[str]:
    """In both precisions, in single precision on a GPU too; token by token where there is a state."""
    return ["float64", "float32", "cuda", *(["steps"] if not read(path).config["bidirectional"] else [])]


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    file = read(path)
    dtype = torch.float64 if variant in ("float64", "steps") else torch.float32
    device = "cuda" if variant == "cuda" else "cpu"
    single = dtype == torch.float32
    c = file.config
    options = {name: c[name] for name in ("bidirectional", "d_state", "d_conv", "expand", "dt_rank")}
    net = MambaMixer(c["d_model"], **options).to(dtype)
    net.load_state_dict(file.part("state."))
    net.to(device)
    x = file["in.x"].to(device, dtype).requires_grad_()
    if c["bidirectional"]:
        y = net(x)
    else:
        state, pieces = None, []
        for piece in x.split(1 if variant == "steps" else x.shape[1], 1):
            y, state = net(piece, state=state, return_state=True)
            pieces.append(y)
        y = torch.cat(pieces, 1)
        assert state is not None
        agree(state[0], file["out.final_conv_state"], single, "convolution state")
        agree(state[1], file["out.final_ssm_state"], single, "state")
    y.backward(file["in.cotangent"].to(device, dtype))
    agree(y, file["out.y"], single, "y")
    agree(x.grad, file["grad.in.x"], single, "gradient of x")
    gradients = {name: g for name, g in file.part("grad.").items() if name != "in.x"}
    assert set(gradients) == {name for name, _ in net.named_parameters()}
    for name, gradient in gradients.items():
        agree(net.get_parameter(name).grad, gradient, single, f"gradient of {name}")
