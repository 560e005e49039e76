"""What kernels share that are native code for a CPU: vectors, XLA's calls and threads, and where the code is kept.

A kernel folder that has `native_code.py` has such a kernel. Numba compiles it on this machine, once; without Numba
nothing here is used, and XLA does the work.
"""
