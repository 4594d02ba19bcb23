"""SpikeGPT's blocks on a GPU with the stream of residuals in few passes: sums, dropout, normalisation, token shift.

Sublayers hand over what is still to be added, so that one kernel (`kernels.shift_norm`) adds it, applies dropout,
normalises, and gives the next products their mixtures in the type that they read. The equations are the modules' own,
which do the same one after another everywhere else. Not for a state that goes from call to call: `Stream` and whoever
else hooks a module of the blocks sees the modules run.

Bytes per token and channel of a block's element-wise work under bfloat16 autocast, forward + backward, with dropout:

    one operator after another   219 + 355: normalisations and shifts 94 + 126, dropout 9 + 9, two gates 20 + 36,
                                 the square of the hidden layer, four times as wide, 96 + 184
    fused                         60 +  83: 30 + 38, mask 2 + 1, gates 12 + 20, square 16 + 24

At 12 x 1024 tokens, 768 channels and 18 blocks 97.5 GB and 24.3 GB a step. Besides, a token shift that is woven walks
over the tokens one by one, with a thread for every few channels of a text; the fused one is parallel over tokens too.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from spikeloom.kernels.op import dispatched
from spikeloom.kernels.shift_norm import Added, shift_norm, takes
from spikeloom.neurons import Neuron
from spikeloom.spiking_attention import ChannelMix, TimeMix
from spikeloom.spiking_attention.channel_mix import mix_two
from spikeloom.spiking_attention.time_mix import mix_three

_HALF = (torch.bfloat16, torch.float16)


def fuses(x: Tensor, blocks: nn.ModuleList, last: nn.LayerNorm) -> bool:
    """Whether `fused_blocks` serves a stream `[T, B, C]` here: where `shift_norm` does, in a network that neither
    divides nor halves (`rescale_every`), whose modules are the ones it was built with and have no hooks."""
    every: list[Any] = list(blocks)
    if not x.is_cuda or dispatched() or any(block.divisor > 1 or block.halves for block in every):
        return False
    if torch_modules._has_any_global_hook() or any(map(_hooked, chain(blocks.modules(), (last,)))):
        return False  # asked early: a stream, which comes for every token, has its hooks in the first block
    if type(last) is not nn.LayerNorm or not all(map(_as_built, every)):
        return False
    if any(type(block.ln0) is not nn.Identity for block in every[1:]):  # blocks in another order
        return False
    norms = [last, *(norm for block in every for norm in (block.ln1, block.ln2))]
    params = [p for norm in norms for p in (norm.weight, norm.bias)]
    mixes = [m for block in every for mixer in (block.att, block.ffn) for m in mixer.mixes()]
    return takes(x, *params, *mixes)


def _as_built(block: Any) -> bool:
    """Whether what is not called as a module is what its parameters say; a shift may ask for another backend."""
    norms = type(block.ln1) is type(block.ln2) is nn.LayerNorm
    shifts = _shifts_as_built(block.att) and _shifts_as_built(block.ffn)
    return norms and shifts and type(block.dropout) is nn.Dropout and block.dropout.p < 1


def _shifts_as_built(mixer: Any) -> bool:
    step = {TimeMix: mix_three, ChannelMix: mix_two}.get(type(mixer))
    return step is not None and (
        type(mixer.mix) is Neuron and mixer.mix.step is step and mixer.mix.backend in ("auto", "cuda")
    )


def _hooked(module: nn.Module) -> bool:
    """Whether somebody watches a module's calls, or has given it another `forward` of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def fused_blocks(x: Tensor, blocks: nn.ModuleList, last: nn.LayerNorm) -> Tensor:
    """The stream `[T, B, C]` in front of the first block's token mixer -> what the read-out reads."""
    dtype = stored(x)
    added: Added | None = None
    for block in blocks:
        parts: Any = block
        x, *mixtures = _passed(x, added, parts.ln1, parts.att.mixes(), dtype)
        added = Added(parts.lif1(parts.att.mixed(*mixtures)))
        x, *mixtures = _passed(x, added, parts.ln2, parts.ffn.mixes(), dtype)
        added = _dropped(parts.lif2(parts.ffn.mixed(*mixtures)), parts.dropout)
    return _passed(x, added, last, (), dtype)[1]


def stored(x: Tensor) -> torch.dtype:
    """The type that the matrix products read: autocast's, if that is half precision."""
    device = x.device.type
    wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return wanted if wanted in _HALF else x.dtype


def _passed(
    x: Tensor, added: Added | None, norm: nn.LayerNorm, mixes: tuple[Tensor, ...], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    return shift_norm(x, added, norm.weight, norm.bias, norm.eps, mixes, dtype)


def _dropped(spikes: Tensor, dropout: nn.Dropout) -> Added:
    """The mask is drawn on the device, from its generator, which a CUDA graph advances."""
    if not dropout.training or dropout.p == 0:
        return Added(spikes)
    kept = torch.empty(spikes.shape, dtype=torch.uint8, device=spikes.device).bernoulli_(1 - dropout.p)
    return Added(spikes, kept, 1 / (1 - dropout.p))
