"""Loss of a language model: cross-entropy of the next token, with a gradient that keeps the largest logits small.

    loss = -mean_{t,b} log softmax(logits[t,b])[target[t,b]]
    gradient = d loss / d logits,  plus penalty / (T B) max(logits[t,b]) at the largest logit of each position

The second part is the gradient of (penalty / 2) mean max(logits)^2. As in the code of RWKV and SpikeGPT
(ridgerchu/SpikeGPT, commit 029f86f) it is in no reported loss, and a factor on the loss does not scale it.

A target of -100 counts in the mean no more than in torch's cross_entropy; its position has the second part all the
same. Logits in half precision are computed in float32; on a GPU they are read as they lie (`kernels.token_loss`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels.token_loss import takes, token_loss


def language_loss(logits: Tensor, targets: Tensor, penalty: float = 1e-4) -> Tensor:
    """Mean cross-entropy in nats per token, float32 (float64 of float64 logits).

    Args:
        logits: [T, B, V].
        targets: the token after each, [T, B], whole numbers.
        penalty: weight of the gradient on the largest logits; 0 is the cross-entropy alone.

    Raises:
        ValueError: shapes that do not fit, or a negative penalty.
    """
    if logits.ndim != 3 or targets.shape != logits.shape[:2] or targets.is_floating_point():
        raise ValueError(
            f"language_loss got logits {list(logits.shape)} and targets {list(targets.shape)} of {targets.dtype}; "
            "expected logits [T, B, V] and token ids [T, B]."
        )
    if not penalty >= 0:
        raise ValueError(f"language_loss got penalty={penalty}; expected a number >= 0 (0: none).")
    if takes(logits, targets):
        return token_loss(logits, targets, penalty)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten().long())
    return _Penalised.apply(loss, logits.max(2).values, penalty) if penalty else loss


class _Penalised(torch.autograd.Function):
    """The loss as it is, with the penalty's gradient on the largest logits [T, B]."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, largest: Tensor, penalty: float) -> Tensor:
        ctx.save_for_backward(largest)
        ctx.factor = penalty / max(largest.numel(), 1)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (largest,) = ctx.saved_tensors
        return grads[0], largest * ctx.factor, None
