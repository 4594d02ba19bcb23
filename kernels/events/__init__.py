"""Kernels of event streams: bins, voxels and time surfaces, refractory and background-activity filters."""
