"""Paged attention as native code on a CPU: what supports it, and its call. See `native_code` for what it does."""

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..native.library import require, target_name

__all__ = ["KERNEL", "check_support", "page_kind", "paged_attention_native"]

KERNEL = "paged_attention"

MULTIPLE = 16
"""What head sizes must be multiples of."""


def page_kind(dtype: jnp.dtype) -> str:
    """The kind of pages of a type; those of bfloat16 are read as its bits. Raises NotImplementedError for others."""
    name = "uint16" if dtype == jnp.bfloat16 else jnp.dtype(dtype).name
    if name not in ("float32", "float16", "uint16", "int8", "uint8"):
        raise NotImplementedError(f"native attention reads pages of float32, 16 or 8 bits, not {name}")
    return name


def check_support(head_dim: int, value_dim: int | None = None) -> None:
    """Raise NotImplementedError where the native kernel does not take these sizes."""
    for what, size in (("head size", head_dim), ("value's size", value_dim or head_dim)):
        if size % MULTIPLE:
            raise NotImplementedError(f"native attention wants a {what} that {MULTIPLE} divides, not {size}")


def paged_attention_native(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    sinks: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    decode: bool = False,
    value_dim: int | None = None,
) -> jax.Array:
    """Arguments and result as of `paged_attention`. Raises NotImplementedError where it does not support them.

    `value_dim`: how many first numbers of each of `v_pages` are the value, if not all; the result has this width.
    """
    T, H, D = q.shape
    width = value_dim or D
    check_support(D, width)
    kind = page_kind(k_pages.dtype)
    require(KERNEL, kind)
    if k_pages.dtype == jnp.bfloat16:
        k_pages, v_pages = (lax.bitcast_convert_type(pages, jnp.uint16) for pages in (k_pages, v_pages))
    none = jnp.zeros(1, jnp.float32)
    integers = np.array([width, sliding_window or 0, decode, sinks is not None], np.int32)
    floats = np.array([scale, soft_cap or 0], np.float32)
    out = jax.ffi.ffi_call(target_name(KERNEL, kind), jax.ShapeDtypeStruct((T, H, width), jnp.float32))(
        q.astype(jnp.float32),
        k_pages,
        v_pages,
        *(a.astype(jnp.int32) for a in (page_table, query_start, context_len)),
        *(none if a is None else a.astype(jnp.float32) for a in (sinks, k_scale, v_scale)),
        integers,
        floats,
    )
    return out.astype(q.dtype)
