"""`IntegerDelayConv1d`: a layer with rounded delays at the cost of its synapses and spikes, for inference.

    y[t, o] = bias[o] + sum_(i, c) w[o, i, c] x[t - d[o, i, c], i],   x = 0 before the first step

It computes what `DelayConv1d` computes with rounded positions, without its kernel of K taps, and carries from chunk to
chunk the sums that are on their way. `integer_` puts it in the place of all layers of a network.

Paper: Hammouamri, Khalfaoui-Hassani, Masquelier 2024, arXiv:2306.17670, section 3 (rounding the positions after
training).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.kernels.delays import Tables, delayed_sum
from spikeloom.synapses.dcls import check_steps
from spikeloom.synapses.delay_conv import DelayConv1d
from spikeloom.synapses.hooks import hooked
from spikeloom.synapses.integer_delays import IntegerDelays

Model = TypeVar("Model", bound=nn.Module)
_DERIVED = ("rounded_weight", "rounded_delay", *(f"table_{name}" for name in Tables._fields))


class IntegerDelayConv1d(DelayConv1d):
    """Whole-number delays, `[T, B, I]` -> `[T + tail, B, O]`; made by `IntegerDelayConv1d.of(layer)`.

    Parameters and their names are those of the layer it was made of, without gradients, so its files fit it. What the
    kernels read is derived from them, and anew by the next call after they were replaced or written to; not by one
    that is compiled or replayed from a CUDA graph, nor after writes that torch does not count (`parameter.data`).
    float32 and float64; results have the same bits for any chunks and any number of threads.
    """

    @classmethod
    def of(cls, layer: DelayConv1d) -> IntegerDelayConv1d:
        """A copy of a layer with rounded positions (`layer.round_positions_()`).

        Raises:
            ValueError: positions that are no whole numbers or outside the kernel, or a profile wider than one tap.
        """
        IntegerDelays.of(layer)
        with torch.device("meta"):
            made = cls(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_count,
                layer.size[0],
                tail=layer.tail,
                groups=layer.groups,
                bias=layer.bias is not None,
                version=layer.version,
            )
        for name in ("weight", "P", "SIG", "bias"):
            value = getattr(layer, name)
            own = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
            setattr(made, name, own)
        for name, buffer in layer._buffers.items():  # those that are None too: the owner looks for them
            if name not in _DERIVED:
                kept = None if buffer is None else buffer.clone()
                made.register_buffer(name, kept, name not in layer._non_persistent_buffers_set)
        made._derive()
        return made.train(layer.training)

    def forward(self, x: Tensor, *, state: Any = None, return_state: bool = False, tail: bool | None = None) -> Any:
        """Run all time steps.

        Args:
            x: `[T, B, I]`.
            state: sums on their way, a tensor `[K - 1, B, O]`, that of the first step first; None: none.
            return_state: also return those that the next chunk needs.
            tail: as in `DelayConv1d.forward`.

        Returns:
            `[T, B, O]`, with a tail `[T + tail_steps, B, O]`; with `return_state` a pair of it and the state.

        Raises:
            ValueError: a gradient is asked for; x or a state of another shape or type; positions that are no longer
                whole numbers.
        """
        check_steps(x, self)
        if not (state is None or isinstance(state, Tensor)):
            raise ValueError(
                f"IntegerDelayConv1d got a state of {type(state).__name__}; expected a tensor [K - 1, B, O] that this "
                "layer returned (DelayConv1d keeps inputs instead). Start anew with state=None."
            )
        if not torch.compiler.is_compiling() and self._changed():
            self._derive()
        if tail if tail is not None else state is None and not return_state:
            x = F.pad(x, (0, 0, 0, 0, 0, self.tail_steps))
        buffers: dict[str, Any] = self._buffers  # get_buffer costs 1 us a name
        weight, delay, *tables = (buffers[name] for name in _DERIVED)
        y, *kept = delayed_sum(
            x, state, weight, delay, self.bias, Tables(*tables), size=self.size[0], groups=self.groups,
            keep=return_state,
        )  # fmt: skip
        return (y, kept[0]) if return_state else y

    def _derive(self) -> None:
        """What the kernels read."""
        exact = IntegerDelays.of(self)
        for name, value in zip(_DERIVED, (exact.weight, exact.delay.int(), *exact.tables), strict=True):
            self.register_buffer(name, value, persistent=False)
        self._seen = self.version, *((p, _writes(p)) for p in self._parameters.values())

    def _changed(self) -> bool:
        """Whether parameters are others than those that `_derive` saw, or were written to since."""
        if not self._seen or self._seen[0] != self.version:
            return True
        pairs = zip(self._seen[1:], self._parameters.values(), strict=True)
        return any(seen is not p or writes != _writes(p) for (seen, writes), p in pairs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        nn.Module._apply(self, fn, recurse)
        if self._seen and not self.weight.is_meta:
            self._derive()
        return self

    _seen: tuple[Any, ...] = ()


def _writes(parameter: Tensor | None) -> int:
    """How often it was written to, as far as torch counts."""
    return 0 if parameter is None or parameter.is_inference() else parameter._version


def integer_(model: Model) -> Model:
    """Put an `IntegerDelayConv1d` in the place of every `DelayConv1d` of a network with rounded delays.

    Example:
        >>> model.round_()               # of a DelaySNN; round_positions_() of a layer
        >>> integer_(model.eval())

    Returns:
        The network itself.

    Raises:
        ValueError: there is no such layer, one has positions that are not rounded, or hooks, which would be lost; the
            network is as it was.
    """
    layers = {id(m): m for m in model.modules() if isinstance(m, DelayConv1d)}
    if not layers or isinstance(model, DelayConv1d):
        raise ValueError(
            f"integer_ got {type(model).__name__}; expected a network that contains DelayConv1d layers. A layer alone "
            "is turned by IntegerDelayConv1d.of(layer)."
        )
    if own := [name for name, m in model.named_modules() if id(m) in layers and hooked(m)]:
        raise ValueError(
            f"integer_: {', '.join(own)} has hooks, which the new layers would not have; remove them first."
        )
    made = {key: m if isinstance(m, IntegerDelayConv1d) else IntegerDelayConv1d.of(m) for key, m in layers.items()}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                parent._modules[name] = made[id(child)]
    return model
