"""Lets the compile tests use the CUDA plugin on a machine that has no GPU."""

import os
from pathlib import Path

# The plugin refuses to load without a driver unless told not to look for one; jax reads this when its first
# backend starts. A machine with a driver keeps its own settings.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
