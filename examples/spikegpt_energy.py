"""Energy of SpikeGPT per token, as its paper counts and strictly: `python examples/spikegpt_energy.py [COUNTS]`.

Trains a small model on two sentences until its neurons fire, counts it on that text, and prints both conventions side
by side: seconds on the CPU, no download. COUNTS is a file of `spikeloom.energy.save` with the counts of any SpikeGPT,
which is then printed instead. docs/models/spikegpt.md explains why the columns differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from spikeloom import Stream
from spikeloom.energy import Counts, count, load
from spikeloom.energy.spikegpt_convention import side_by_side
from spikeloom.models import SpikeGPT, create_model, language_loss

TEXT = b"A spike says only that it came. What it means is in the weights behind it. "
CONTEXT, BATCH = 64, 16


def train(steps: int) -> SpikeGPT:
    """Two blocks of width 64 that learn the text; an untrained SpikeGPT does not fire."""
    torch.manual_seed(0)
    model = create_model("spikegpt_46m", vocab_size=128, embed_dim=64, depth=2)
    assert isinstance(model, SpikeGPT)
    text = torch.tensor(list(TEXT * 3))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (BATCH,))
        ids = text[torch.arange(CONTEXT + 1)[:, None] + starts]  # [T + 1, B]
        optimiser.zero_grad()
        language_loss(model(ids[:-1]), ids[1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


def measure(model: SpikeGPT, ids: Tensor, *, piece: int) -> Counts:
    """Counts of texts [T, B] that a stream reads in pieces of so many tokens: 1 as in generation, T in one call."""
    with torch.no_grad(), count(model, strict=True) as run, run.batch(T=ids.shape[0], B=ids.shape[1]):
        stream = Stream(model)
        for tokens in ids.split(piece):
            stream(tokens)
    return run.counts()


def main(argv: Sequence[str] | None = None) -> int:
    """Count, or read counts, and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition(":")[0])
    parser.add_argument("counts", nargs="?", help="counts of a SpikeGPT, stored by spikeloom.energy.save")
    parser.add_argument("--steps", type=int, default=100, help="of training")
    options = parser.parse_args(argv)
    if options.counts is not None:
        print(side_by_side(load(options.counts)))
        return 0
    model, ids = train(options.steps), torch.tensor(list(TEXT))[:CONTEXT, None]
    printed = side_by_side(measure(model, ids, piece=CONTEXT))
    print(printed)
    if printed != side_by_side(measure(model, ids, piece=1)):
        print("token by token the counts differ, by neurons whose membrane is within rounding of the threshold")
    else:
        print("token by token, as in generation: the same counts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
