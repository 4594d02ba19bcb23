"""Golden networks: whole texts with both sets of gradients, token by token with every state, four training steps."""

from __future__ import annotations

import json
from typing import Any

import torch
from spikeloom_tests.golden.spikegpt.build import close, model_of, ours, relatively_close
from spikeloom_tests.golden.stored import Stored
from torch import Tensor, nn

from spikeloom.models import SpikeGPT, language_loss
from spikeloom.neurons import Stream
from spikeloom.training.token_schedule import rate_at_token


class Keep(nn.Module):
    """A dropout whose mask is given; kept values are those of the rate 0.03."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep / 0.97


def check_text(file: Stored, dtype: torch.dtype, device: str) -> None:
    """Logits, loss, spikes, and the gradients of the logits and of the loss."""
    model = model_of(file, dtype, device)
    ids, targets = (file[name].T.contiguous().to(device) for name in ("in.idx", "in.targets"))
    for name, keep in file.part("in.dropout_keep.").items():
        mask = keep.transpose(0, 1).to(device, dtype)
        model.get_submodule("blocks")[int(name)].dropout = Keep(mask)  # type: ignore[index]
    exact = dtype == torch.float64
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name == "binary" or name.endswith(("lif1", "lif2")):
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y.detach()}))  # type: ignore[misc]
    logits = model(ids)
    close(logits.transpose(0, 1), file["out.logits"], 1e-10 if exact else 2e-5, "logits")
    names = {"binary": "out.emb_spikes", **{name: f"out.spikes.{name}" for name in seen if name != "binary"}}
    assert set(names.values()) == {key for key in file.tensors if "spikes" in key}
    for name, spikes in seen.items():
        assert torch.equal(spikes.transpose(0, 1).cpu().double(), file[names[name]].double()), name
    logits.backward(file["in.cotangent"].transpose(0, 1).to(device, dtype))
    _check_gradients(file, model, "grad.", exact)
    loss = language_loss(model(ids), targets)
    close(loss, file["out.loss"], 1e-10 if exact else 2e-5, "loss")
    model.zero_grad()
    loss.backward()
    _check_gradients(file, model, "grad_loss.", exact)


def _check_gradients(file: Stored, model: SpikeGPT, prefix: str, exact: bool) -> None:
    parameters = dict(model.named_parameters())
    expected = {ours(model, key): value for key, value in file.part(prefix).items()}
    assert expected.keys() == parameters.keys()
    for name, value in expected.items():
        relatively_close(parameters[name].grad, value, 1e-9 if exact else 1e-3, prefix + name)


@torch.no_grad()
def check_tokens(file: Stored, dtype: torch.dtype, device: str) -> None:
    """Whole, token by token and in pieces; as corrected, and as the official script has it."""
    ids = file["in.idx"].T.contiguous().to(device)
    atol = 1e-10 if dtype == torch.float64 else 2e-5
    model = model_of(file, dtype, device)
    close(model(ids).squeeze(1), file["out.logits_train"], atol, "parallel logits")
    _check_steps(file, model, ids, "out.", [1] * len(ids))
    _check_steps(file, model, ids, "out.", [len(ids)])
    _check_steps(file, model, ids, "out.", [5, 1, 1, len(ids) - 7])
    switches = json.loads(file.meta["official_switches"])
    options: dict[str, Any] = {
        "embedding": "binary" if switches["binary_embedding"] else "raw",
        "rescale_every": switches["rescale_every"],
    }
    _check_steps(file, model_of(file, dtype, device, **options), ids, "out.official.", [1] * len(ids))


def _check_steps(file: Stored, model: SpikeGPT, ids: Tensor, prefix: str, pieces: list[int]) -> None:
    stream, done, exact = Stream(model), 0, model.emb.weight.dtype == torch.float64
    for piece in ids.split(pieces):
        logits = stream(piece)
        expected = file[f"{prefix}logits"][done : done + len(piece)]
        close(logits.squeeze(1), expected, 1e-10 if exact else 2e-5, f"{prefix}logits from {done}")
        done += len(piece)
        for name, value in official_state(stream, len(model.blocks)).items():
            close(value, file[prefix + name][done - 1], 1e-10 if exact else 5e-5, f"{prefix}{name} after {done}")


def official_state(stream: Stream, depth: int) -> dict[str, Tensor]:
    """The state in the official arrangement: five vectors per layer, and the membranes of both neurons."""

    def of(layer: int, name: str) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = stream.state[f"blocks.{layer}.{name}#0"]
        return found

    rows = [row for layer in range(depth) for name in ("ffn.mix", "att.mix", "att.wkv") for row in of(layer, name)]
    membranes = {f"mem{i}_v": torch.cat([of(layer, f"lif{i}")[0] for layer in range(depth)]) for i in (1, 2)}
    return {"state": torch.cat(rows), **membranes}


def check_training(file: Stored) -> None:
    """Losses, rates, norms before clipping, and the parameters after the last step."""
    config = file.config
    model = model_of(file, torch.float64, "cpu", dropout=0.0).train()
    optimiser = torch.optim.Adam(
        model.parameters(), lr=config["lr_init"], betas=tuple(config["betas"]), eps=config["eps"]
    )
    found: dict[str, list[float]] = {"losses": [], "lrs_used": [], "grad_norms": []}
    tokens = 0
    for step in range(config["steps"]):
        loss = language_loss(model(file["in.idx"][step].T), file["in.targets"][step].T)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config["grad_norm_clip"])
        optimiser.step()
        used = optimiser.param_groups[0]["lr"]
        for name, value in (("losses", loss.item()), ("lrs_used", used), ("grad_norms", norm.item())):
            found[name].append(value)
        tokens += int((file["in.targets"][step] >= 0).sum())
        optimiser.param_groups[0]["lr"] = rate_at_token(
            tokens, config["lr_init"], config["lr_final"], config["warmup_tokens"], config["final_tokens"]
        )
    for name, values in found.items():
        close(torch.tensor(values, dtype=torch.float64), file[f"out.{name}"], 1e-9, name)
    final = {ours(model, key): value for key, value in file.part("out.final.").items()}
    assert final.keys() == dict(model.named_parameters()).keys()
    for name, value in final.items():
        close(model.get_parameter(name), value, 1e-9, name)
