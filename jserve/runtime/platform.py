"""Which devices there are, and the mesh over them. Must be asked before anything else touches jax."""

import logging
import os
from ctypes.util import find_library
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jserve.errors import ConfigError
from jserve.layers.build import TENSOR_AXIS

logger = logging.getLogger(__name__)

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def has_nvidia_gpu() -> bool:
    """Whether a driver and a device are there; a CUDA plugin alone does not make a GPU."""
    return Path("/dev/nvidiactl").exists() or (find_library("cuda") is not None and Path("/dev/nvidia0").exists())


def choose_platform(gpu_memory_utilization: float) -> None:
    """Set what jax reads from the environment when it starts: the CPU where there is no GPU, and the share of
    the GPU's memory. What the user has set stays.
    """
    if not has_nvidia_gpu():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # a plugin without a driver is no error
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(gpu_memory_utilization))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def make_mesh(tensor_parallel_size: int) -> Mesh:
    """A mesh of one axis, "tp", over the first devices. Raises ConfigError where there are too few."""
    devices = jax.devices()
    if len(devices) < tensor_parallel_size:
        raise ConfigError(
            f"--tensor-parallel-size is {tensor_parallel_size} but {len(devices)} "
            f"{devices[0].platform} device(s) are visible; lower it, or make more devices visible"
        )
    return Mesh(np.array(devices[:tensor_parallel_size]), (TENSOR_AXIS,))


def resolve_dtype(asked: str, checkpoint: str, platform: str) -> jnp.dtype:
    """The dtype of weights and products. "auto" is the checkpoint's; on a CPU bfloat16 where it has the
    instructions for it, else float32, since converting costs more there than it saves.
    """
    if asked != "auto":
        return jnp.dtype(asked)
    if platform != "cpu":
        return jnp.dtype("bfloat16" if checkpoint == "float32" else checkpoint)
    return jnp.dtype("bfloat16" if checkpoint == "bfloat16" and _cpu_multiplies_bfloat16() else "float32")


def activation_dtype(weights: jnp.dtype, platform: str) -> jnp.dtype:
    """Between products: the weights' dtype on a GPU; float32 on a CPU, which is quicker there and finer."""
    return jnp.dtype("float32") if platform == "cpu" else weights


def _cpu_multiplies_bfloat16() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return any(flag in line.split() for flag in BFLOAT16_INSTRUCTIONS)
