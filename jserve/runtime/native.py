"""Which kernels an engine on a CPU gets: native code where there is some for this machine, else XLA."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from jserve.config import ModelConfig
from jserve.layers.build import Build
from jserve.quant import PackedMatrix
from pallas_kernels.dense_matmul import KERNEL as PRODUCT
from pallas_kernels.native.library import SUFFIX, load_kernel
from pallas_kernels.packed_matmul import KERNEL as PACKED
from pallas_kernels.paged_attention.native import KERNEL as ATTENTION
from pallas_kernels.paged_attention.native import check_support, page_kind

logger = logging.getLogger(__name__)

Folders = Sequence[Path | None]
"""Where compiled code is looked for; what is missing is stored in the last of them."""

_COMPILE = """
import sys
from pathlib import Path
from pallas_kernels.native.library import load_kernel
load_kernel(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
"""


@contextmanager
def attention_compiled_beside(build: Build, config: ModelConfig, folders: Folders) -> Iterator[None]:
    """While the block compiles another kernel, a process of its own compiles the attention, where none is stored: each
    takes seconds of one core. What goes wrong in it is compiled again, and said, by `with_native_attention`.
    """
    folder = folders[-1] if folders else None
    kind = page_kind(_pages(build))
    stored = [path for each in folders if each is not None for path in each.glob(f"{ATTENTION}-{kind}-*{SUFFIX}")]
    if folder is None or stored or (os.cpu_count() or 1) < 2 or _unsupported(config) is not None:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-c", _COMPILE, ATTENTION, kind, str(folder)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.wait()


def _unsupported(config: ModelConfig) -> str | None:
    """Why a model's attention is not native; None where it is."""
    latent = config.latent
    try:
        if latent is None:
            for layer in range(config.num_layers):
                check_support(config.of_layer(layer).head_dim)
        else:
            check_support(latent.rank + latent.rope_dim, latent.rank)
    except NotImplementedError as error:
        return str(error)
    return None


def _pages(build: Build) -> jnp.dtype:
    return {"auto": build.kv_dtype, "int8": jnp.dtype("int8"), "fp8": jnp.dtype("uint8")}[build.kv_cache]


def with_native_attention(build: Build, config: ModelConfig, folders: Folders) -> Build:
    """The build with an attention for its KV cache; elsewhere than on a CPU the kernels choose for themselves."""
    if build.mesh.devices.flat[0].platform != "cpu":
        return build
    reason = _unsupported(config)
    if reason is not None:
        logger.info("attention runs on XLA: %s", reason)
    has_code = reason is None and load_kernel(ATTENTION, page_kind(_pages(build)), *folders)
    return replace(build, attention="native" if has_code else "xla")


def has_native_products(kind: str, folders: Folders) -> bool:
    """Whether products with weights of this type ("float32", or "uint16" for the bits of bfloat16) are native code."""
    return load_kernel(PRODUCT, kind, *folders)


def has_native_packed(model: nnx.Module, folders: Folders) -> bool:
    """Whether products with all packed weights of an abstract model are native code."""
    values = [variable.get_value() for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    kinds = {value.kind for value in values if isinstance(value, PackedMatrix)}
    return all(load_kernel(PACKED, kind, *folders) for kind in sorted(kinds))


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; XLA, which uses them, is slow without."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return any(features.get(name) for name in ("amx-bf16", "avx512bf16", "bf16"))
