"""Whole networks, in training and evaluation, whole and as streams of whole-number delays."""

from __future__ import annotations

import copy
from typing import Any

import torch
from spikeloom_tests.golden.delays.stored import Stored, close, near, same
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom import Stream
from spikeloom.models import from_official
from spikeloom.models.delay_neurons import PLI
from spikeloom.models.delay_official import official_names, official_state, our_fields
from spikeloom.models.delay_readout import accuracy, delay_loss
from spikeloom.models.delay_snn import DelaySNN, DelaySNNConfig
from spikeloom.neurons import LI
from spikeloom.synapses import IntegerDelays, NormNeuron


class Masked(nn.Module):
    """Dropout with a stored mask [B, N]."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.dtype)


class Watch:
    """The input and output of every neuron layer of the next call, from the input on, with BatchNorm applied."""

    def __init__(self, model: DelaySNN) -> None:
        self.modules = [block.fire for block in model.blocks]
        self.modules += [] if isinstance(model.head.neuron, nn.Identity) else [model.head.neuron]
        self.copies = [copy.deepcopy(module) for module in self.modules]
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.handles = [module.register_forward_hook(self._keep) for module in self.modules]

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append((args[0].detach(), output.detach()))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def layers(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Per layer the current, the spikes, the membrane after reset (None: it has none)."""
        return [self._layer(module, x, y) for module, (x, y) in zip(self.copies, self.seen, strict=True)]

    def _layer(self, module: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if isinstance(module, NormNeuron):
            mean, var = module.running_mean, module.running_var
            folded = F.batch_norm(x.flatten(0, 1), mean, var, module.weight, module.bias, module.training, 0.1, 1e-5)
            x, module = folded.detach().view_as(x), module.neuron
        state: Any = None
        membranes = []
        for now in x:
            _, state = module(now[None], state=state, return_state=True)
            if not state:
                return x, y, None
            membranes.append(state[0])
        membrane = torch.stack(membranes).detach()
        return x, torch.zeros_like(y) if isinstance(module, (LI, PLI)) else y, membrane


def built(file: Stored) -> DelaySNN:
    """Our network with the file's parameters; they come back under the same names."""
    state = file.part("state.")
    model = from_official("dcls_delays", file.network(), state)
    assert isinstance(model, DelaySNN)
    names = official_names(model.double())
    model.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})  # not rounded to float32
    again = official_state(model)
    assert again.keys() == state.keys()
    for key, value in state.items():
        same(again[key], value, key)
    return model.train(file.mode.startswith("train"))


def indices(keys: Any) -> list[str]:
    """Numbers in the names of tensors, ascending."""
    return sorted(keys, key=int)


def compare_neurons(file: Stored, watch: Watch, prefix: str, tolerance: float) -> None:
    """Spikes equal; membranes and currents close, where they are stored."""
    for kind in range(3):
        word = ("current", "spikes", "v_seq")[kind]
        stored = file.part(f"{prefix}{word}.")
        if not stored:
            continue
        for index, layer in zip(indices(stored), watch.layers(), strict=True):
            value = layer[kind]
            assert value is not None, index
            if word == "spikes":
                same(value, stored[index], f"spikes {index}")
            else:
                near(value, stored[index], tolerance, f"{word} {index}")


def check_train(file: Stored, dtype: torch.dtype) -> None:
    """Output, spikes, buffers, both kinds of gradients, loss and metric of one forward pass."""
    model = built(file).to(dtype)
    for block, mask in zip(model.blocks, indices(file.part("in.dropout_mask.")), strict=True):
        block.dropout = Masked(file[f"in.dropout_mask.{mask}"])
    exact = dtype == torch.float64
    with Watch(model) as watch:
        y = model(file["in.x"].to(dtype))
    near(y, file["out.y"], 1e-10 if exact else 1e-5, "y")
    compare_neurons(file, watch, "out.", 1e-10 if exact else 1e-5)
    names = official_names(model)
    found = {names[key]: value for key, value in model.named_parameters() if value.requires_grad}
    loss = delay_loss(y, file["in.labels"], file.config["loss"])
    near(loss, file["out.loss"], 1e-10 if exact else 1e-5, "loss")
    same(accuracy(y, file["in.labels"], file.config["loss"]), file["out.metric"], "metric")
    for prefix, root in (("grad.", (y * file["in.cotangent"].to(dtype)).sum()), ("lossgrad.", loss)):
        expected = file.part(prefix)
        assert expected.keys() == found.keys()
        for key, ours in zip(found, torch.autograd.grad(root, list(found.values()), retain_graph=True), strict=True):
            close(ours, expected[key], 1e-9 if exact else 1e-4, prefix + key)
    after = official_state(model)
    for key, value in file.part("out.after.").items():
        near(after[key], value, 1e-10 if exact else 1e-5, key)


def check_eval(file: Stored, dtype: torch.dtype) -> None:
    """As trained and with rounded delays; the model is unchanged after it."""
    model, x = built(file).to(dtype), file["in.x"].to(dtype)
    before = copy.deepcopy(model.state_dict())
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    rounded_y = file["out.y_rounded" if "out.y_rounded" in file.tensors else "out.y"]
    if "out.y_unrounded" in file.tensors:
        with Watch(model) as watch:
            near(model(x), file["out.y_unrounded"], tolerance, "unrounded y")
        compare_neurons(file, watch, "out.unrounded.", tolerance)
    with model.rounded(), torch.no_grad():
        own = official_state(model)
        for key, value in file.part("out.rounded.").items():
            same(own[key], value, key)
        stored = file.part("out.delay.")
        for layer, key in zip(model.delayed(), sorted(stored, key=lambda k: int(k.split(".")[1])), strict=True):
            same(layer.delays(), stored[key], key)
        with Watch(model) as watch:
            y = model(x)
        near(y, rounded_y, tolerance, "y")
        compare_neurons(file, watch, "out.", tolerance)
        near(delay_loss(y, file["in.labels"], file.config["loss"]), file["out.loss_rounded"], tolerance, "loss")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def check_streaming(file: Stored) -> None:
    """Chunks and whole-number delays against the padded convolution: with the official tail, and without a tail."""
    model, x = built(file), file["in.x"]
    expected = file["out.y_rounded"]
    with model.rounded(), torch.no_grad():
        for sizes in ([len(x)], [1] * len(x), [5, 1, len(x) - 6]):
            for form in ("gather", "scatter"):
                y, events = ticked(model, x.split(sizes), form)
                near(y, expected, 1e-12, f"{form}, chunks {sizes}")
                assert events == [int(n) for n in file["out.synaptic_events"]], form
            stream, chunks = Stream(model), x.split(sizes)
            parts = [stream(chunk) for chunk in chunks[:-1]]
            near(torch.cat([*parts, stream.clone()(chunks[-1])]), expected[: len(x)], 1e-12, f"stream {sizes}")
            near(torch.cat([*parts, stream(chunks[-1], tail=True)]), expected, 1e-12, f"stream with tail {sizes}")
        near(model(x, tail=False), expected[: len(x)], 1e-12, "no tail")


def ticked(model: DelaySNN, chunks: Any, form: str) -> tuple[Tensor, list[int]]:
    """The network with each layer's synapses tick by tick; a layer's input is zero behind the end of the one before."""
    layers = [*((block.synapse, block.fire) for block in model.blocks), (model.head.synapse, model.head.neuron)]
    integer = [IntegerDelays.of(synapse) for synapse, _ in layers]
    states = [synapses.begin(chunks[0].shape[1], form) for synapses in integer]
    membranes: list[Any] = [None] * len(layers)
    T, out = sum(map(len, chunks)), []
    for number, chunk in enumerate(chunks):
        h = chunk
        for b, (synapse, fire) in enumerate(layers):
            until = T + (b + 1) * synapse.tail_steps
            if number == len(chunks) - 1:
                h = F.pad(h, (0, 0, 0, 0, 0, synapse.tail_steps))
            run = integer[b].gather(h, states[b]) if form == "gather" else integer[b].scatter(h, states[b], until)
            h, membranes[b] = fire(run, state=membranes[b], return_state=True)
        out.append(h)
    return torch.cat(out), [state.events for state in states]


def check_init(file: Stored) -> None:
    """Starting values bit by bit."""
    model = DelaySNN(DelaySNNConfig(**our_fields(file.network())))
    torch.manual_seed(file.config["seed"])
    model.reset_parameters()
    own, stored = official_state(model), file.part("out.model.")
    assert own.keys() == {f"model.{key}" for key in stored}
    for key, value in stored.items():
        assert torch.equal(own[f"model.{key}"], value), key
    masks = file.part("out.mask.")
    assert bool(masks) == bool(file.config["sparsity_p"])
    own_masks = [layer.mask for layer in model.synapses() if layer.mask is not None]
    for mask, number in zip(own_masks, indices(masks), strict=True):
        same(mask, masks[number], f"mask {number}")
