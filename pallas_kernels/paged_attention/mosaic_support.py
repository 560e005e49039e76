"""Where the Mosaic GPU kernel can run, and where it was measured to be the faster one. Imports no Pallas."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .. import tuning
from .target import Target

__all__ = ["Pipeline", "check_support", "has_won", "measured"]

NEEDS_JAX = (0, 12)  # kernels that run inside CUDA graphs, and the names that this one is written with
HEAD_DIMS = (64, 128)
PAGE_SIZES = (64, 128)
LARGEST_GROUP = 8  # query heads with 8 tokens each in the 64 rows of a warpgroup
TABLE = "paged_prefill_mosaic"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How many pages of keys, and of values, are in flight."""

    num_stages: int


def check_support(q: jax.Array, k_pages: jax.Array, v_pages: jax.Array, has_scales: bool, target: Target) -> None:
    """Raise NotImplementedError, naming what is supported, unless the Mosaic kernel can run this here."""
    if jax.__version_info__[:2] < NEEDS_JAX:
        raise NotImplementedError(f"the Mosaic kernel needs JAX 0.12 or newer; this is {jax.__version__}")
    if target.platform == "gpu" and target.capability[0] != 9:
        raise NotImplementedError(f"the Mosaic kernel is for compute capability 9 (Hopper); got {target.capability}")
    (_, H, D), (_, K, B, _) = q.shape, k_pages.shape
    if has_scales or {q.dtype, k_pages.dtype, v_pages.dtype} not in ({jnp.dtype("bfloat16")}, {jnp.dtype("float16")}):
        dtypes = f"q {q.dtype}, k_pages {k_pages.dtype}, v_pages {v_pages.dtype}"
        raise NotImplementedError(f"the Mosaic kernel wants q and the pages all bfloat16 or all float16; got {dtypes}")
    if D not in HEAD_DIMS or B not in PAGE_SIZES:
        supported = f"head dims {HEAD_DIMS} and page sizes {PAGE_SIZES}"
        raise NotImplementedError(f"the Mosaic kernel supports {supported}; got {D} and {B}")
    if H // K > LARGEST_GROUP:
        supported = f"up to {LARGEST_GROUP} query heads a KV head"
        raise NotImplementedError(f"the Mosaic kernel supports {supported}; got {H // K}")
    if q.shape[0] < 64:
        raise NotImplementedError(f"the Mosaic kernel wants at least 64 tokens, a whole tile; got {q.shape[0]}")


def measured(key: str, target: Target, default: Pipeline) -> Pipeline:
    """The pipeline that the table of this device has for the key of a `Head`, or the default."""
    return tuning.tuned(target.kind, TABLE, key, default)


def has_won(key: str, target: Target) -> bool:
    """Whether this device's table has the kernel for a key; `benchmarks.tune` writes it there where it saw it win."""
    return bool(tuning.lookup(target.kind, TABLE, key, Pipeline(1)))
