"""Which devices there are, and the mesh over them. Called before anything else touches jax."""

import logging
import os
from ctypes.util import find_library
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jserve.errors import ConfigError
from jserve.layers.build import mesh_over
from jserve.runtime.autotuning import keep_results

logger = logging.getLogger(__name__)

VECTORIZED_COPIES = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
"""XLA:CPU unrolls a short inner loop before it would vectorise it; copies of 16-bit pages are then 5 times slower."""


def has_nvidia_gpu() -> bool:
    """Whether a driver and a device are there; a CUDA plugin alone does not make a GPU."""
    return Path("/dev/nvidiactl").exists() or (find_library("cuda") is not None and Path("/dev/nvidia0").exists())


def choose_platform(gpu_memory_utilization: float, folder: Path | None = None) -> None:
    """Tell jax where to run, before it has looked for devices: on the CPU where there is no GPU, and on a GPU
    with this share of its memory. What the user has set in the environment stays. `folder` is where programs are
    stored, and beside them what the compiler finds fastest on a GPU.
    """
    if has_nvidia_gpu():
        keep_results(folder)
    if not has_nvidia_gpu() and "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # a plugin without a driver is no error
        _add_xla_flag(VECTORIZED_COPIES)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(gpu_memory_utilization))
    # Programs are kept by `executables`, and what jax takes from a cache of its own cannot be stored again on a CPU.
    jax.config.update("jax_enable_compilation_cache", False)


def _add_xla_flag(flag: str) -> None:
    """Unless the user's XLA_FLAGS say something else of the same name."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def make_mesh(tensor_parallel_size: int, expert_parallel_size: int = 1) -> Mesh:
    """The mesh over the first devices. Raises ConfigError where there are too few, or experts cannot be dealt out."""
    if tensor_parallel_size % expert_parallel_size:
        raise ConfigError(
            f"--expert-parallel-size is {expert_parallel_size} but must divide --tensor-parallel-size, which is "
            f"{tensor_parallel_size}: experts are dealt out over the devices that share each layer"
        )
    devices = jax.devices()
    if len(devices) < tensor_parallel_size:
        raise ConfigError(
            f"--tensor-parallel-size is {tensor_parallel_size} but {len(devices)} "
            f"{devices[0].platform} device(s) are visible; lower it, or make more devices visible"
        )
    return mesh_over(devices[:tensor_parallel_size], expert_parallel_size)


def resolve_dtype(requested: str, checkpoint: str, platform: str, num_parameters: int) -> jnp.dtype:
    """The dtype of weights and products. "auto" is the checkpoint's on a GPU. On a CPU it is float32, where
    greedy answers then do not move with the batch, unless only 16 bits fit into half of the free memory.
    """
    if requested != "auto":
        return jnp.dtype(requested)
    narrow = jnp.dtype("bfloat16" if checkpoint == "float32" else checkpoint)
    if platform != "cpu":
        return narrow
    return jnp.dtype("float32") if fits_twice(4 * num_parameters) else narrow


def fits_twice(num_bytes: int) -> bool:
    """Whether so many bytes leave at least half of the host's free memory."""
    return num_bytes <= free_host_memory() // 2


def free_host_memory() -> int:
    """Bytes that can be had without swapping: free, and held by caches that give way."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def activation_dtype(weights: jnp.dtype, platform: str) -> jnp.dtype:
    """Between products: the weights' dtype on a GPU; float32 on a CPU, which is quicker there and finer."""
    return jnp.dtype("float32") if platform == "cpu" else weights
