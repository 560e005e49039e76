"""Attention over a paged KV cache: one operation for decode, prefill chunks and mixed batches.

Owns the choice of an implementation and nothing else. `reference.py` is the definition, `xla.py` runs everywhere,
`native.py` is code for the CPU of this machine, `triton_decode.py` and `triton_prefill.py` are the kernels for NVIDIA
GPUs, and `mosaic_decode.py` and `mosaic_prefill.py` are more for Hopper, which take over only where they were measured
to be faster.
"""

import functools
import logging
from typing import Any

import jax

from .mosaic_support import DECODE, PREFILL, check_support, has_won
from .native import paged_attention_native
from .reference import reference
from .target import Target
from .xla import AttentionPlan, attend, make_plan, paged_attention_xla, write_kv, write_pages

__all__ = ["IMPLEMENTATIONS", "AttentionPlan", "paged_attention", "prepare", "write_kv", "write_pages"]

logger = logging.getLogger(__name__)


def paged_attention(
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
    implementation: str = "auto",
    plan: AttentionPlan | None = None,
) -> jax.Array:
    """Attend each query to its row's pages; the tokens of this step are already written there.

    Query i of row s sits at position context_len[s] - query_len[s] + i and sees the positions up to its own
    (and within `sliding_window` of it). `soft_cap` turns a score x into cap * tanh(x / cap) before the mask.
    Query head h uses KV head h // (H / K). Softmax and sums are float32.

    Args:
        q: [T, H, D].
        k_pages, v_pages: [N, K, B, D], in q's dtype; or the bits of bfloat16 in uint16, which "xla" reads; or
            int8, or the bits of float8_e4m3fn in uint8, with scales.
        page_table: i32[S, P], page ids of each row in order; entries past the live range may be anything, those of
            pages before the window any pages, whatever these hold.
        query_start: i32[S+1]; row s owns tokens query_start[s]:query_start[s+1], later tokens are padding.
        context_len: i32[S], tokens in the KV of a row including this step's; 0 for padding rows.
        sinks: [H] or None; a score of each head, neither scaled nor capped, that takes part in the softmax and
            has no value (gpt-oss): it adds exp(sink) to the sum that the weights are divided by.
        k_scale, v_scale: f32[N, K, B, 1], what a token's key and value of 8 bits are multiplied by; else None.
        decode: static promise that T == S and row s owns exactly token s (context_len 0: a padding row).
        implementation: "auto", "reference", "xla", "native", "triton" or "mosaic". "auto" is triton on an NVIDIA GPU
            where it supports the shapes (else xla, with the reason logged once), or mosaic where the table of this
            device says that it is faster; and xla everywhere else. "native" is for CPUs, and faster there; it wants
            Numba, or code that was compiled before, so who calls it has to ask (`native.library`). "triton" and
            "mosaic" on a CPU run Pallas' interpreters: the same arithmetic, and slow.
        plan: what `prepare` returned for the same step and window; spares each layer the same work.

    Returns:
        [T, H, D] in q's dtype; zeros for padding.

    Raises:
        NotImplementedError: the named implementation does not support these shapes; says what it does.
        ValueError: unknown implementation.
    """
    if plan is not None:
        return attend(q, k_pages, v_pages, plan, sinks, k_scale, v_scale, scale=scale, soft_cap=soft_cap)
    args = (q, k_pages, v_pages, page_table, query_start, context_len, sinks, k_scale, v_scale)
    static: dict[str, Any] = {
        "scale": scale,
        "sliding_window": sliding_window,
        "soft_cap": soft_cap,
        "decode": decode,
    }
    match implementation:
        case "auto":
            return _fastest(*args, **static)
        case "reference":
            return reference(*args, **static)
        case "xla":
            return paged_attention_xla(*args, **static)
        case "native":
            return paged_attention_native(*args, **static)
        case "triton":
            return _triton(*args, **static)
        case "mosaic":
            return _mosaic(*args, **static)
    raise ValueError(
        f"unknown implementation {implementation!r}; choose auto, reference, xla, native, triton or mosaic"
    )


def prepare(
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    *,
    tokens: int,
    pages: int,
    page_size: int,
    sliding_window: int | None = None,
    decode: bool = False,
    implementation: str = "auto",
) -> AttentionPlan | None:
    """What all layers of a step with one sliding window share, worked out once; None where there is nothing.

    Arrays as in `paged_attention`; tokens: T; pages: N; page_size: B.
    """
    if implementation != "xla" and (implementation != "auto" or Target.current().platform == "gpu"):
        return None
    return make_plan(
        page_table,
        query_start,
        context_len,
        tokens=tokens,
        pages=pages,
        page_size=page_size,
        sliding_window=sliding_window,
        decode=decode,
    )


def _fastest(*args: Any, **static: Any) -> jax.Array:
    if Target.current().platform != "gpu":
        return paged_attention_xla(*args, **static)
    try:
        return (_mosaic if _mosaic_has_won(*args, **static) else _triton)(*args, **static)
    except NotImplementedError as reason:
        _log_fallback(str(reason))
        return paged_attention_xla(*args, **static)


def _triton(*args: Any, decode: bool, **static: Any) -> jax.Array:
    # Imported on use: a CPU server never pays for loading Pallas.
    from .triton_decode import paged_attention_decode
    from .triton_prefill import paged_attention_prefill

    target = Target.current()
    kernel = paged_attention_decode if decode else paged_attention_prefill
    return kernel(*args, **static, target=target, interpret=target.platform != "gpu")


def _mosaic(*args: Any, decode: bool, **static: Any) -> jax.Array:
    target, kind = Target.current(), DECODE if decode else PREFILL
    q, k_pages, v_pages = args[:3]
    # Before an import that an older JAX cannot make.
    check_support(q, k_pages, v_pages, args[7] is not None, target, kind)
    from .mosaic_decode import paged_attention_decode
    from .mosaic_prefill import paged_attention_prefill

    kernel = paged_attention_decode if decode else paged_attention_prefill
    return kernel(*args, **static, target=target, interpret=target.platform != "gpu")


def _mosaic_has_won(*args: Any, decode: bool, **static: Any) -> bool:
    from .triton_tile import Head

    q, k_pages, v_pages = args[:3]
    target = Target.current()
    head = Head(q.shape[1] // k_pages.shape[1], q.shape[2], k_pages.shape[2], **static)
    kind = DECODE if decode else PREFILL
    if not has_won(head.key(q.dtype), target, kind):
        return False
    try:
        check_support(q, k_pages, v_pages, args[7] is not None, target, kind)
    except NotImplementedError:  # such as an older JAX than that of the table, or too few tokens
        return False
    return True


@functools.cache
def _log_fallback(reason: str) -> None:
    logger.warning("paged attention runs on the slower XLA path: %s", reason)


IMPLEMENTATIONS = {
    "xla": functools.partial(paged_attention, implementation="xla"),
    "native": functools.partial(paged_attention, implementation="native"),
    "triton": functools.partial(paged_attention, implementation="triton"),
    "mosaic": functools.partial(paged_attention, implementation="mosaic"),
}
