"""The loom on a CPU: tapes printed as C++, compiled by the machine's compiler at first use, cached, run with OpenMP."""
