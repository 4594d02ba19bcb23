"""The loom on a GPU: tapes printed as CUDA C++, compiled through CuPy, launched on torch's stream."""
