"""SpikeGPT's steps to time: a training step, and the next token of a text whose past is a state of fixed size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from _steps import Step
from _timing import Timing
from torch import Tensor, nn

from spikeloom.models import create_model
from spikeloom.models.token_loss import language_loss
from spikeloom.neurons import Stream

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "spikegpt_46m": ("spikegpt_46m", {}),
    "spikegpt_216m": ("spikegpt_216m", {}),
    "tiny": ("spikegpt_46m", {"vocab_size": 64, "embed_dim": 32, "depth": 2}),
}
"""Names, and what of the registry they stand for; `tiny` is to see whether it runs."""
PIECE = 1024
"""Tokens that enter at once on the way to a position."""


def network(name: str, device: torch.device) -> nn.Module:
    """A network with the weights that it begins with."""
    torch.manual_seed(0)
    registered, sizes = MODELS[name]
    return create_model(registered, **sizes).to(device)


def train_step(name: str, context: int, batch: int, device: torch.device, dtype: torch.dtype) -> Step:
    """Forward under autocast, the published loss, backward, the gradient's norm limited to 1, AdamW; ids [T, B]."""
    net = network(name, device).train()
    generator = torch.Generator(device).manual_seed(0)
    text = torch.randint(net.config.vocab_size, (context + 1, batch), generator=generator, device=device)
    ids, targets = text[:-1], text[1:]
    fused = device.type == "cuda"
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(
        parameters, 6e-4, betas=(0.9, 0.99), eps=4e-9, weight_decay=0.0, fused=fused, capturable=fused
    )

    def train() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = net(ids)
            loss = language_loss(logits, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Step(train, keep=(net, optimizer))


class Greedy:
    """A text that goes on by its most probable token; `token` [1, B] is the last one.

    Attributes:
        stream: the network and its state. graph: one token as a CUDA graph; None: calls.
    """

    def __init__(self, net: nn.Module, batch: int, device: torch.device) -> None:
        self.net, self.stream = net, Stream(net)
        self.token = torch.zeros(1, batch, dtype=torch.int64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def read(self, ids: Tensor) -> None:
        """Let the text [N, B] go by, in pieces; the token behind it is next."""
        for piece in ids.split(PIECE):
            logits = self.stream(piece, last=True)
        self.token.copy_(logits.argmax(2))

    def step(self) -> None:
        """One token more."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self.token.copy_(self.stream(self.token, last=True).argmax(2))

    def capture(self) -> Greedy:
        """From now on a token is a graph's replay, and the state lies where it lies now. The text is as it was.

        The graph writes the new state over the old one, so that the next replay goes on from there.
        """
        place = self.stream.state
        token = self.token.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.stream.state = place
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._in_place(place)
        self.graph = graph
        self.token.copy_(token)
        return self

    def _in_place(self, place: Any) -> None:
        """One token more, its state where the last one lay."""
        self.step()
        _write(place, list(tensors(self.stream.state)))
        self.stream.state = place

    def follow(self, other: Greedy) -> None:
        """Continue another's text from here on; a captured text keeps the memory of its state."""
        self.token.copy_(other.token)
        if self.stream.state:
            _write(self.stream.state, list(tensors(other.stream.state)))
        else:
            self.stream = other.stream.clone()

    def timed(self, tokens: int, device: torch.device) -> tuple[Timing, list[list[int]]]:
        """ms of each of so many tokens, from its beginning until the host has it, and these tokens."""
        found, times = [], []
        self.token.tolist()
        for _ in range(tokens):
            began = time.perf_counter()
            self.step()
            found.append(self.token[0].tolist())
            times.append((time.perf_counter() - began) * 1e3)
        return Timing.of(times), found

    def state_bytes(self) -> int:
        """Bytes of the state and of the last token."""
        return sum(t.numel() * t.element_size() for t in (self.token, *tensors(self.stream.state)))


def tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, in a fixed order."""
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part)


def _write(place: Any, values: list[Tensor]) -> None:
    for tensor, value in zip(tensors(place), values, strict=True):
        tensor.copy_(value)


def weight_bytes(net: nn.Module) -> int:
    """Bytes of the weights that every token needs: all but the embedding, of which it needs a row."""
    return sum(p.numel() * p.element_size() for name, p in net.named_parameters() if name != "emb.weight")
