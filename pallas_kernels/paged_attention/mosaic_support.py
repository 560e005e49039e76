"""Where the Mosaic GPU kernels can run, and where they were measured to be the faster ones. Imports no Pallas."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .. import tuning
from .target import Target

__all__ = [
    "CHOSEN_WITH_JAX",
    "DECODE",
    "NEEDS_JAX",
    "PREFILL",
    "Kind",
    "Pipeline",
    "check_support",
    "has_won",
    "measured",
]

NEEDS_JAX = (0, 11)  # the names that the kernels are written with: enough to measure them
CHOSEN_WITH_JAX = (0, 12)  # with which they run inside CUDA graphs
HEAD_DIMS = (64, 128)
PAGE_SIZES = (64, 128)


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the kernels. `table`: its name in the tables of `pallas_kernels.tuning`, and on the GPU."""

    table: str
    largest_group: int
    """Query heads of a KV head that fit into a tile."""
    fewest_tokens: int


PREFILL = Kind("paged_prefill_mosaic", 8, 64)  # 8 tokens of each head in the 64 rows of a warpgroup; a whole tile
DECODE = Kind("paged_decode_mosaic", 64, 1)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How many pages of keys, and of values, are in flight."""

    num_stages: int


def check_support(
    q: jax.Array, k_pages: jax.Array, v_pages: jax.Array, has_scales: bool, target: Target, kind: Kind = PREFILL
) -> None:
    """Raise NotImplementedError, naming what is supported, unless the Mosaic kernel can run this here."""
    if jax.__version_info__[:2] < NEEDS_JAX:
        raise NotImplementedError(f"the Mosaic kernel needs JAX 0.11 or newer; this is {jax.__version__}")
    if target.platform == "gpu" and target.capability[0] != 9:
        raise NotImplementedError(f"the Mosaic kernel is for compute capability 9 (Hopper); got {target.capability}")
    (_, H, D), (_, K, B, _) = q.shape, k_pages.shape
    if has_scales or {q.dtype, k_pages.dtype, v_pages.dtype} not in ({jnp.dtype("bfloat16")}, {jnp.dtype("float16")}):
        dtypes = f"q {q.dtype}, k_pages {k_pages.dtype}, v_pages {v_pages.dtype}"
        raise NotImplementedError(f"the Mosaic kernel wants q and the pages all bfloat16 or all float16; got {dtypes}")
    if D not in HEAD_DIMS or B not in PAGE_SIZES:
        supported = f"head dims {HEAD_DIMS} and page sizes {PAGE_SIZES}"
        raise NotImplementedError(f"the Mosaic kernel supports {supported}; got {D} and {B}")
    if kind.largest_group < H // K:
        supported = f"up to {kind.largest_group} query heads a KV head"
        raise NotImplementedError(f"the Mosaic kernel supports {supported}; got {H // K}")
    if q.shape[0] < kind.fewest_tokens:
        raise NotImplementedError(
            f"the Mosaic kernel wants at least {kind.fewest_tokens} tokens, a whole tile; got {q.shape[0]}"
        )


def measured(key: str, target: Target, default: Pipeline, kind: Kind = PREFILL) -> Pipeline:
    """The pipeline that the table of this device has for the key of a `Head`, or the default."""
    return tuning.tuned(target.kind, kind.table, key, default)


def has_won(key: str, target: Target, kind: Kind = PREFILL) -> bool:
    """Whether this device's table has the kernel for a key, and this JAX puts it into CUDA graphs.

    `benchmarks.tune` writes it there where it saw it win.
    """
    if jax.__version_info__[:2] < CHOSEN_WITH_JAX:
        return False
    return bool(tuning.lookup(target.kind, kind.table, key, Pipeline(1)))
