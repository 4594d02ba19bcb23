"""From logits to the distribution that the next token is drawn from: top-p filter, then temperature.

    p = softmax(logits); the probabilities are kept that are >= the one at which their sorted sum first exceeds top_p
    p = p^(1 / temperature), normalised

Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", arXiv:1904.09751, in the order of the code of RWKV
and SpikeGPT: the filter sees the distribution before the temperature changes it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def next_token_probabilities(logits: Tensor, top_p: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Probabilities [..., V] of the next token by logits [..., V].

    Args:
        top_p: 0 keeps the most probable token (and those equal to it); 1 and above keep every token, where the authors'
            code keeps the most probable one unless rounding lets the sum exceed 1.
        temperature: > 0; above 1 flattens the distribution.

    Raises:
        ValueError: a number out of range, NaN among the logits, or no finite logit.
    """
    if not temperature > 0 or not top_p >= 0:
        raise ValueError(f"got temperature={temperature} and top_p={top_p}; expected temperature > 0 and top_p >= 0.")
    probabilities = torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    if bool(probabilities.isnan().any()):
        raise ValueError("the logits hold NaN or no finite number, so they give no distribution; check the model.")
    if top_p < 1:
        ranked = probabilities.sort(-1, descending=True).values
        beyond = ranked.cumsum(-1) > top_p
        first = beyond.to(torch.uint8).argmax(-1, keepdim=True)
        cutoff = torch.where(beyond.any(-1, keepdim=True), ranked.gather(-1, first), 0.0)
        probabilities = probabilities.masked_fill(probabilities < cutoff, 0.0)
    if temperature != 1:
        largest = probabilities.amax(-1, keepdim=True)  # so that no power of all of them vanishes
        probabilities = (probabilities / largest) ** (1 / temperature)
    return probabilities / probabilities.sum(-1, keepdim=True)
