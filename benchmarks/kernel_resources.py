"""What a compiled kernel takes of one core of a GPU, out of what XLA dumps and what ptxas says. Text in, facts out.

The PTX is assembled once more by the ptxas of this machine, whose version goes beside the figures.
"""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax

from pallas_kernels.gpu_target import Gpu

__all__ = [
    "Launch",
    "Occupancy",
    "Resources",
    "dump_flags",
    "find_ptxas",
    "launches",
    "mosaic_launch",
    "occupancy",
    "ptxas_version",
    "resources",
]

WARP = 32
REGISTERS_PER_CORE = 65_536
REGISTER_UNIT = 256  # of a warp
QUARTERS = 4  # of a core, each with its own registers
WARPS_PER_CORE = 64
BLOCKS_PER_CORE = 32
RESERVED_SHARED = 1024  # of each block, by the system
SHARED_UNIT = 128


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel as XLA launches it; shared memory in bytes, asked for at the launch."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared_memory: int


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes: registers and bytes of local memory per thread, bytes of shared memory per block, and
    spilled bytes.
    """

    registers: int
    static_shared: int
    local_memory: int
    spilled: int


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How many blocks one core holds at once, and what stops the next."""

    blocks: int
    limited_by: str


def dump_flags(folder: Path) -> str:
    """For XLA_FLAGS before the first backend starts: dump what is read here, PTX too, which JAX 0.12 leaves out.

    An older one would write every emitter's steps as well, which takes minutes.
    """
    emitters = " --xla_dump_emitter_re=.*" if jax.__version_info__ >= (0, 12) else ""
    return f"--xla_dump_to={folder}{emitters}"


def find_ptxas() -> Path | None:
    """On the PATH, else in the wheels that bring one: nvidia-cuda-nvcc and triton."""
    on_path = shutil.which("ptxas")
    if on_path:
        return Path(on_path)
    for package, inside in (
        ("nvidia", ("cuda_nvcc/bin/ptxas", "cu13/bin/ptxas")),
        ("triton", ("backends/nvidia/bin/ptxas",)),
    ):
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            present = [Path(folder, path) for path in inside if Path(folder, path).exists()]
            if present:
                return present[0]
    return None


def ptxas_version(ptxas: Path) -> str:
    """Such as "13.0, V13.0.88"."""
    output = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (.*)", output)
    return match[1].strip() if match else output.strip().splitlines()[-1]


def resources(ptx: str, ptxas: Path) -> dict[str, Resources]:
    """What each kernel of a PTX file takes, by name. Raises ValueError in ptxas' words where it refuses the file."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    if target is None:
        return {}  # XLA also dumps empty files
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(ptxas), f"-arch={target[1]}", "-v", file.name, "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{ptxas.name} refused the PTX for {target[1]}: {done.stderr.strip()[:300]}")
    return read_ptxas(done.stderr)


def read_ptxas(output: str) -> dict[str, Resources]:
    """Out of what `ptxas -v` prints."""
    by_kernel = {}
    for part in output.split("Compiling entry function '")[1:]:
        used = re.search(r"Used (\d+) registers(.*)", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if used is None or frame is None:
            raise ValueError(f"ptxas -v speaks of a kernel in words that are new here: {part[:300]}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        by_kernel[part.split("'", 1)[0]] = Resources(
            registers=int(used[1]),
            static_shared=int(shared[1]) if shared else 0,
            local_memory=int(frame[1]),
            spilled=int(frame[2]) + int(frame[3]),
        )
    return by_kernel


def launches(thunks: str) -> list[Launch]:
    """Kernels with their grids, out of XLA's dump `*.thunk_sequence*.txt`, in CUDA graphs or not."""
    pattern = r"\] (\S+) grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), (\d+), (\d+)\].*?shared_memory: (\d+) bytes"
    return [
        Launch(name, (int(x), int(y), int(z)), int(a) * int(b) * int(c), int(shared))
        for name, x, y, z, a, b, c, shared in re.findall(pattern, thunks)
    ]


def mosaic_launch(module: str) -> Launch:
    """A kernel with its grid, out of Mosaic's dump `*.before_layout_inference.txt`."""
    name = re.search(r"func\.func @(\w+)\(", module)
    sizes = re.search(
        r"gpu\.launch .*? blocks\(.*?\) in \((.*?)\) threads\(.*?\) in \((.*?)\) "
        r"dynamic_shared_memory_size %c(\d+)",
        module,
    )
    if name is None or sizes is None:
        raise ValueError(f"Mosaic speaks of a launch in words that are new here: {module[:300]}")
    (x, y, z), threads = ([int(size) for size in re.findall(r"= %c(\d+)", text)] for text in sizes.groups()[:2])
    return Launch(f"{name[1]}_kernel", (x, y, z), math.prod(threads), int(sizes[3]))


def occupancy(gpu: Gpu, threads: int, used: Resources, dynamic_shared: int) -> Occupancy:
    """Blocks of one kernel that a core holds at once.

    As in NVIDIA's occupancy calculator: registers go to warps in units of 256, from the quarter of a core that the
    warp lives on; each block has 1 KiB of shared memory reserved, in units of 128 bytes (CUDA C++ Programming
    Guide, tables of technical specifications for compute capabilities 8.0, 9.0 and 10.0).
    """
    warps = -(-threads // WARP)
    of_warp = -(-used.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    live_warps = REGISTERS_PER_CORE // QUARTERS // of_warp * QUARTERS
    shared = -(-(used.static_shared + dynamic_shared + RESERVED_SHARED) // SHARED_UNIT) * SHARED_UNIT
    limits = {
        "blocks": BLOCKS_PER_CORE,
        "warps": WARPS_PER_CORE // warps,
        "registers": live_warps // warps,
        "shared memory": gpu.shared_memory_per_core // shared,
    }
    name = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[name], name)
