"""NVIDIA GPUs to compile for on a machine that has none: lowering, PTX and memory plans, never execution.

Needs the jax-cuda12-plugin (or cuda13) wheels of jax's own version and no driver; set
JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 and JAX_PLATFORMS=cpu before jax is imported. Autotuning is off without a
device, so what is compiled here is for reading and asserting, not for shipping or timing.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

__all__ = ["GPUS", "Gpu", "abstract_gpus", "gpu_topology", "why_unavailable"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """The numbers of one GPU that the compiler's choices follow. Sizes in bytes, rates in bytes a second."""

    name: str
    major: int
    cores: int
    fpus_per_core: int
    shared_memory: int  # the most that one block may ask for
    shared_memory_per_core: int
    l2_cache: int
    clock_ghz: float
    memory: int
    memory_bandwidth: int

    def target_config(self) -> str:
        """What XLA reads, as text; a real machine writes its own with --xla_dump_to (*gpu_target_config*)."""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared_memory_per_core}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {self.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.memory_bandwidth}
  l2_cache_size: {self.l2_cache}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.memory}
  shared_memory_per_block_optin: {self.shared_memory}
  cuda_compute_capability {{ major: {self.major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{self.name}"
"""


_MIB, _GIB = 2**20, 2**30

# H100 as XLA dumps it; the others from the vendor's data sheets.
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 166_912, 167_936, 40 * _MIB, 1.41, 80 * _GIB, 2_039_000_000_000),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3",
        9,
        132,
        128,
        232_448,
        233_472,
        50 * _MIB,
        1.98,
        84_929_347_584,
        3_352_320_000_000,
    ),
    "h200": Gpu("NVIDIA H200", 9, 132, 128, 232_448, 233_472, 50 * _MIB, 1.98, 150_754_820_096, 4_800_000_000_000),
    "b200": Gpu("NVIDIA B200", 10, 148, 128, 232_448, 233_472, 126 * _MIB, 1.965, 180 * _GIB, 8_000_000_000_000),
}


def gpu_topology(kind: str, n: int = 1) -> Sequence[jax.Device]:
    """`n` compile-only devices of a kind in `GPUS`, on one host, for a Mesh or a SingleDeviceSharding.

    Raises ValueError for an unknown kind, and RuntimeError where no CUDA plugin works (see why_unavailable).
    """
    gpu = _lookup(kind)
    reason = why_unavailable()
    if reason is not None:
        raise RuntimeError(f"cannot compile for {gpu.name}: {reason}")
    return _devices(gpu, n)


def why_unavailable() -> str | None:
    """None where GPU programs can be compiled, else the reason, fit for a test's skip message."""
    try:
        _devices(GPUS["h100"], 1)
    except Exception as error:  # the plugin raises bare runtime errors of its own, in words that change by version
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return (
            f"no CUDA plugin that works without a GPU ({first_line}); install "
            f"jax-cuda12-plugin=={jax.__version__} and jax-cuda12-pjrt=={jax.__version__} with --no-deps, "
            "and set JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 before jax is imported"
        )
    return None


@contextlib.contextmanager
def abstract_gpus(kind: str, axes: Mapping[str, int] = MappingProxyType({"tp": 1})) -> Iterator[AbstractMesh]:
    """Trace and lower for a mesh of GPUs of a kind: Pallas and jserve's kernel choice read the device from here."""
    gpu = _lookup(kind)
    device = AbstractDevice(device_kind=gpu.name, num_cores=gpu.cores, platform="gpu")
    types = (AxisType.Auto,) * len(axes)
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=types, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield mesh


def _lookup(kind: str) -> Gpu:
    if kind not in GPUS:
        raise ValueError(f"unknown GPU kind {kind!r}; choose one of {', '.join(GPUS)}, or add it to GPUS")
    return GPUS[kind]


def _devices(gpu: Gpu, n: int) -> Sequence[jax.Device]:
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", topology=f"1x1x{n}", target_config=gpu.target_config()
    ).devices
