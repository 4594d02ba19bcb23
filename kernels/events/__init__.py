"""Kernels of event streams: counting into bins, refractory and background-activity filters."""
