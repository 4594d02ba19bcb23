"""Recurrent: spikes fed back through a weight, added to the input of the next step.

s[t], state[t] = neuron(x[t] + weight(s[t-1]), state[t-1]),    s[-1] = 0
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.neurons.module import Neuron


class Recurrent(nn.Module):
    """Neurons whose spikes of the last step come back through a weight, on [T, *neurons] inputs.

    The weight mixes neurons, so the steps run one after the other, each as a kernel of one step.

    Args:
        neuron: any neuron with one input and one output.
        weight: module without memory that maps [*neurons] to [*neurons], for example `nn.Linear(N, N)` for
            [T, B, N] or `nn.Conv2d(C, C, 3, padding=1)` for [T, B, C, H, W]. A bias acts at the first step too.
    """

    streams = True

    def __init__(self, neuron: Neuron, weight: nn.Module) -> None:
        super().__init__()
        if len(neuron.program.inputs) != 1 or len(neuron.program.outputs) != 1:
            raise TypeError(
                f"Recurrent needs a neuron with one input and one output; {neuron.step.name} has inputs "
                f"{list(neuron.program.inputs)} and {len(neuron.program.outputs)} output(s)"
            )
        if inner := [name or "itself" for name, m in weight.named_modules() if getattr(m, "streams", False)]:
            raise TypeError(f"the weight of Recurrent must be without memory, but has state in: {', '.join(inner)}")
        self.neuron = neuron
        self.weight = weight

    def forward(self, x: Tensor, *, state: tuple[Tensor, ...] | None = None, return_state: bool = False) -> Any:
        """Run all time steps.

        Args:
            x: input [T, *neurons].
            state: last spikes [*neurons], then the neuron's states; None starts from rest without spikes.
            return_state: also return the state after the last step.

        Returns:
            Spikes [T, *neurons], or `(spikes, state)`.
        """
        if not x.is_floating_point() or x.dim() < 2 or x.shape[0] == 0:
            raise ValueError(
                f"Recurrent got input {list(x.shape)} of {x.dtype}; expected floating-point [T, *neurons] with "
                f"time first and T >= 1"
            )
        last = torch.zeros_like(x[0]) if state is None else state[0]
        if last.shape != x.shape[1:]:
            raise ValueError(
                f"Recurrent got a state of neurons {list(last.shape)} for an input {list(x.shape)}; start from "
                f"rest (state=None) when the batch changes"
            )
        inner: tuple[Tensor, ...] = () if state is None else tuple(state[1:])
        spikes = []
        for step in x.unbind(0):
            back = self.weight(last)
            if back.shape != step.shape:
                raise ValueError(
                    f"the weight of Recurrent maps spikes {list(last.shape)} to {list(back.shape)}; they "
                    f"are added to an input step {list(step.shape)} and must have its shape"
                )
            out, inner = self.neuron((step + back).unsqueeze(0), state=inner or None, return_state=True)
            last = out.squeeze(0)
            spikes.append(last)
        result = torch.stack(spikes)
        return (result, (last, *inner)) if return_state else result
