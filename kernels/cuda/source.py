"""CUDA source of the forward and backward kernel of a program, for one tuning.

A thread owns `V` neighbouring lanes and runs them through all time steps with the state in registers. Time is walked in
chunks of `K` unrolled steps whose loads are issued together, the next chunk's ahead of the current one's arithmetic.
Backward walks the chunks from the end: state at the start of the chunk (kept by forward), recomputed states inside,
then back through the derived step. Gradients of tensor parameters are summed per thread over a walk whose stride is a
multiple of the parameter's period, and written as one partial sum per thread: no atomics, the same bits every run.

The kernels are written out in forward.cu, backward.cu and common.cu; forward.py, backward.py and writer.py supply what
depends on the program.
"""

from spikeloom.kernels.cuda.backward import backward_source
from spikeloom.kernels.cuda.forward import forward_source
from spikeloom.kernels.cuda.writer import STORAGE_BYTES, Tuning

__all__ = ["STORAGE_BYTES", "Tuning", "backward_source", "forward_source"]
