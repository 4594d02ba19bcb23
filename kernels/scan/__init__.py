"""Selective scan and causal depthwise convolution: what a Mamba mixer computes along its tokens."""

from spikeloom.kernels.scan.mixing import causal_conv1d, selective_scan

__all__ = ["causal_conv1d", "selective_scan"]
