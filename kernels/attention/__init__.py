"""The product of spiking self-attention, s Q (K^T V) per head, in one kernel each way."""

from spikeloom.kernels.attention.product import keys_first_product, takes

__all__ = ["keys_first_product", "takes"]
