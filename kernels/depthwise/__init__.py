"""Depth-wise convolution of channels-last maps on a GPU."""

from spikeloom.kernels.depthwise.convolution import convolve, depthwise, input_gradient, serves, weight_gradient

__all__ = ["convolve", "depthwise", "input_gradient", "serves", "weight_gradient"]
