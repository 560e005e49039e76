"""Prints the PTX of a few small programs for an H200, in a process of its own: XLA is told to dump when it starts.

python -m tests.pallas_kernels.ptx_of NAME
"""

import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from benchmarks.kernel_resources import dump_flags


@cache
def ptx_of(name: str) -> str:
    """The PTX of all kernels of a program of `_PROGRAMS`. Raises CalledProcessError where it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"{dump_flags(Path(folder))} --xla_gpu_fail_ptx_compilation_on_register_spilling=true"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
        command = [sys.executable, "-m", "tests.pallas_kernels.ptx_of", name]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return "\n".join(path.read_text() for path in sorted(Path(folder).rglob("*.ptx")))


def innermost_loops(ptx: str) -> list[str]:
    """The bodies of loops that hold no other loop: from a label to the last branch back to it."""
    lines = ptx.splitlines()
    labels = {match[1]: n for n, line in enumerate(lines) if (match := re.match(r"(\$L\w+):", line))}
    jumps = [
        (n, match[1]) for n, line in enumerate(lines) if (match := re.search(r"\bbra(?:\.uni)?\s+(\$L\w+);", line))
    ]
    loops = {(labels[to], n) for n, to in jumps if labels.get(to, n) < n}
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    return ["\n".join(lines[a:b]) for a, b in sorted(inner)]


def _compile(name: str) -> None:
    import jax
    import jax.numpy as jnp

    from pallas_kernels.gpu_target import abstract_gpus, gpu_topology
    from pallas_kernels.paged_attention.xla import write_pages
    from pallas_kernels.sampling import kept_threshold

    device = jax.sharding.SingleDeviceSharding(gpu_topology("h200")[0])

    def struct(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=device)

    def write(dtype: str, gib: int = 0) -> tuple[jax.stages.Wrapped, tuple[jax.ShapeDtypeStruct, ...]]:
        number = gib * 2**30 // (8 * 64 * 128 * jnp.dtype(dtype).itemsize) or 1000
        pages, new = struct((number, 8, 64, 128), dtype), struct((256, 8, 128), dtype)
        return jax.jit(write_pages, donate_argnums=0), (pages, new, struct((256,), "int32"))

    rows = struct((32, 128_256), "float32"), struct((32,), "int32"), struct((32,), "float32")
    function, arguments = {
        "threshold": (jax.jit(kept_threshold), rows),
        "write bfloat16": write("bfloat16"),
        "write uint8": write("uint8"),
        "write uint8 in 3 GiB": write("uint8", 3),
        "write bfloat16 in 9 GiB": write("bfloat16", 9),
    }[name]
    with abstract_gpus("h200"):
        lowered = function.trace(*arguments).lower(lowering_platforms=("cuda",))
    lowered.compile()


if __name__ == "__main__":
    _compile(sys.argv[1])
