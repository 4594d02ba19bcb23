"""Cross-entropy of tokens on a GPU, from the logits as they lie."""

from spikeloom.kernels.token_loss.fused import takes, token_loss

__all__ = ["takes", "token_loss"]
