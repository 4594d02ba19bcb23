"""Stream: run a network chunk by chunk, as if the chunks were one long input.

The protocol: a module with memory has a class attribute `streams = True` and `forward(..., *, state=None,
return_state=False)`. With `state=None` it starts from rest; with `return_state=True` it returns `(result, state)`. Time
is axis 0 of its first input. A state is a tensor, or a tuple of states. A streaming module looks after the state of the
modules inside it. Nothing else is needed for a module to work in a Stream.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

State = Any
"""A tensor, or a tuple of states."""


class Stream:
    """A network and its state between chunks: `stream(a)`, then `stream(b)`, is `net(torch.cat([a, b]))` cut in two.

    The state belongs to the stream, never to the network: several streams of one network do not disturb each other, and
    calling the network itself starts from rest as always. If a call fails, the state stays what it was. A module that
    is called several times in a forward has one state per call, in the order of the calls, so the order must not change
    from chunk to chunk. Not for networks that recompute activations in backward (`torch.utils.checkpoint`).

    Args:
        net: the network, not compiled by `torch.compile`.
        detach: cut the gradient between chunks; False lets it flow through (and keeps every chunk's graph).

    Example:
        >>> stream = Stream(net)
        >>> for chunk in x.split(100):       # x [T, B, ...]
        ...     spikes = stream(chunk)
    """

    def __init__(self, net: nn.Module, detach: bool = True) -> None:
        self.net = net
        self.detached = detach
        self.state: dict[str, State] = {}
        self._shapes: dict[str, torch.Size] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network on the next chunk, [T, B, ...] with any T >= 1, and keep its state for the one after.

        Raises:
            ValueError: a layer's input has another shape than in the last chunk (T aside).
            TypeError: the network is compiled.
        """
        call = _Call(self.state, self._shapes)
        with call.attached(self.net):
            result = self.net(*args, **kwargs)
        kept = _apply(Tensor.detach, call.found) if self.detached else call.found
        self.state = {**self.state, **kept}
        self._shapes = {**self._shapes, **call.shapes}
        return result

    def reset(self) -> Stream:
        """Forget: the next chunk starts from rest, with any batch size."""
        self.state, self._shapes = {}, {}
        return self

    def detach(self) -> Stream:
        """Cut the gradient here."""
        self.state = _apply(Tensor.detach, self.state)
        return self

    def to(self, device: torch.device | str) -> Stream:
        """Move the state (the network is moved with `net.to`)."""
        self.state = _apply(lambda t: t.to(device), self.state)
        return self

    def clone(self) -> Stream:
        """Another stream of the same network that continues from here."""
        twin = Stream(self.net, self.detached)
        twin.state, twin._shapes = _apply(Tensor.clone, self.state), dict(self._shapes)
        return twin

    def state_dict(self) -> dict[str, Tensor]:
        """Copy of the state as flat `layer#call/part -> tensor`; `safetensors.torch.save_file` takes it as it is."""
        return {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for key, state in self.state.items()
            for name, tensor in _flatten(key, state)
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> Stream:
        """Continue from a copy that `state_dict` made.

        Raises:
            KeyError: it belongs to another network; the message lists the layers that this one lacks.
        """
        here = {name for name, _ in _streaming(self.net)}
        if foreign := sorted({name.split("#")[0] for name in tensors} - here):
            raise KeyError(
                f"this network has no streaming layer {', '.join(foreign)}; it has {', '.join(sorted(here))}"
            )
        self.state, self._shapes = _unflatten(tensors), {}
        return self

    def __repr__(self) -> str:
        parts = sum(1 for key, state in self.state.items() for _ in _flatten(key, state))
        return f"Stream({type(self.net).__name__}, {len(self.state)} states, {parts} tensors)"


class _Call:
    """One forward of a network with state put into its streaming modules and taken out again, by module hooks.

    `frames` mirrors the streaming modules that are running: the key of the state each was given, and whether its caller
    asked for the state too. Modules inside another streaming module, and calls that bring a state, are left alone.
    """

    def __init__(self, state: Mapping[str, State], shapes: Mapping[str, torch.Size]) -> None:
        self.given, self.known = state, shapes
        self.found: dict[str, State] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.frames: list[tuple[str, bool]] = []
        self.calls: Counter[str] = Counter()
        self.thread = threading.get_ident()

    @contextmanager
    def attached(self, net: nn.Module) -> Iterator[None]:
        handles = []
        try:
            for name, module in _streaming(net):
                handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._after, prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if threading.get_ident() != self.thread:
                return None
            asked = bool(kwargs.get("return_state"))
            if self.frames or kwargs.get("state") is not None:
                self.frames.append(("", asked))
                return None
            key = f"{name}#{self.calls[name]}"
            self.calls[name] += 1
            self._check_shape(name, key, args)
            self.frames.append((key, asked))
            return args, {**kwargs, "state": self.given.get(key), "return_state": True}

        return hook

    def _check_shape(self, name: str, key: str, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        shape, last = args[0].shape[1:], self.known.get(key)
        if last is not None and shape != last:
            raise ValueError(
                f"layer {name or 'net'!r} got input [T, {_sizes(shape)}] but its state belongs to "
                f"[T, {_sizes(last)}]; call stream.reset() before a chunk of another batch size, or use "
                f"one Stream per batch"
            )
        self.shapes[key] = shape

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if threading.get_ident() != self.thread:
            return None
        key, asked = self.frames.pop()
        if not key:
            return None
        result, self.found[key] = output
        return output if asked else result


def _streaming(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules with memory, each once, under its first name."""
    wrapper = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", ())  # importing it would take a second
    for name, module in net.named_modules():
        if isinstance(module, wrapper) or module._compiled_call_impl is not None:
            raise TypeError(
                f"{name or 'the network'} is compiled by torch.compile, which ignores the hooks that carry "
                f"the state; give Stream the network as it was before torch.compile"
            )
    return [(name, module) for name, module in net.named_modules() if getattr(module, "streams", False)]


def _apply(change: Callable[[Tensor], Tensor], state: State) -> State:
    if isinstance(state, dict):
        return {key: _apply(change, part) for key, part in state.items()}
    if isinstance(state, tuple):
        return tuple(_apply(change, part) for part in state)
    return change(state)


def _flatten(name: str, state: State) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, tuple):
        for i, part in enumerate(state):
            yield from _flatten(f"{name}/{i}", part)
    else:
        yield name, state


def _unflatten(tensors: Mapping[str, Tensor]) -> dict[str, State]:
    """Inverse of `_flatten`: `a#0/0, a#0/1/0, b#0` -> `{a#0: (., (.,)), b#0: .}`."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, leaf = name.split("/")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = tensor

    def build(node: Any) -> State:
        return tuple(build(node[str(i)]) for i in range(len(node))) if isinstance(node, dict) else node

    return {key: build(node) for key, node in tree.items()}


def _sizes(shape: torch.Size) -> str:
    return ", ".join(str(n) for n in shape)
