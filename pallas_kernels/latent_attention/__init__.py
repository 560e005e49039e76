"""Attention over a paged cache of latents (DeepSeek-V2, arXiv:2405.04434, section 2.1), in the absorbed form.

Every query head attends to the same keys, one of D = rank + rope numbers a token, and the value of a key is its
first `rank` numbers. What makes queries of this width and brings results back to heads is the caller's.
`reference.py` is the definition, `xla.py` runs everywhere, "native"
is the code of `paged_attention` for CPUs, `triton_decode.py` and `triton_prefill.py` are the
kernels for NVIDIA GPUs: compiled and interpreted, never executed on a GPU.

Prefill too is absorbed. For each query, key and head that takes 2 * (576 + 512) operations at DeepSeek's sizes
against 2 * (192 + 128) with keys and values expanded to heads, 3.4 times as many. Expanding takes 2 * 512 * 256 a key
and head, for the whole context in every chunk, so it is less work only from 171 new tokens of a row on, and it needs
room for the expanded context, 640 bytes a token and head, which at 128 heads and 32k tokens is 2.7 GB. The absorbed
form has one kernel, reads each latent once and needs no room; long prompts pay for it: at 4k tokens a V3 computes
about 1.3 times what the expanded form would, its other products included, at 32k 2.2 times.
"""

import functools
import logging
from typing import Any

import jax

from ..paged_attention import AttentionPlan
from ..paged_attention.native import paged_attention_native
from ..paged_attention.target import Target
from .reference import reference
from .xla import attend_latents, latent_attention_xla

__all__ = ["IMPLEMENTATIONS", "latent_attention"]

logger = logging.getLogger(__name__)


def latent_attention(
    q: jax.Array,
    pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_len: jax.Array,
    *,
    rank: int,
    scale: float,
    decode: bool = False,
    implementation: str = "auto",
    plan: AttentionPlan | None = None,
) -> jax.Array:
    """Attend each query to its row's pages; the tokens of this step are already written there.

    Query i of row s sits at position context_len[s] - query_len[s] + i and sees the positions up to its own.
    Softmax and sums are float32.

    Args:
        q: [T, H, D]; D is rank + rope.
        pages: [N, 1, B, D], in q's dtype; or the bits of bfloat16 in uint16, which "xla" reads.
        page_table: i32[S, P], page ids of each row in order; entries past the live range may be anything.
        query_start: i32[S+1]; row s owns tokens query_start[s]:query_start[s+1], later tokens are padding.
        context_len: i32[S], tokens in the cache of a row including this step's; 0 for padding rows.
        decode: static promise that T == S and row s owns exactly token s (context_len 0: a padding row).
        implementation: "auto", "reference", "xla", "native" or "triton", as in `paged_attention`.
        plan: what `paged_attention.prepare` returned for the same step; spares each layer the same work.

    Returns:
        [T, H, rank] in q's dtype; zeros for padding.

    Raises:
        NotImplementedError: the named implementation does not support these shapes; says what it does.
        ValueError: unknown implementation.
    """
    if plan is not None:
        return attend_latents(q, pages, plan, rank=rank, scale=scale)
    args = (q, pages, page_table, query_start, context_len)
    static: dict[str, Any] = {"rank": rank, "scale": scale, "decode": decode}
    match implementation:
        case "auto":
            return _fastest(*args, **static)
        case "reference":
            return reference(*args, **static)
        case "xla":
            return latent_attention_xla(*args, **static)
        case "native":
            return _native(*args, **static)
        case "triton":
            return _triton(*args, **static)
    raise ValueError(f"unknown implementation {implementation!r}; choose auto, reference, xla, native or triton")


def _fastest(*args: Any, **static: Any) -> jax.Array:
    if Target.current().platform != "gpu":
        return latent_attention_xla(*args, **static)
    try:
        return _triton(*args, **static)
    except NotImplementedError as reason:
        _log_fallback(str(reason))
        return latent_attention_xla(*args, **static)


def _triton(*args: Any, decode: bool, **static: Any) -> jax.Array:
    # Imported on use: a CPU server never pays for loading Pallas.
    from .triton_decode import latent_attention_decode
    from .triton_prefill import latent_attention_prefill

    target = Target.current()
    kernel = latent_attention_decode if decode else latent_attention_prefill
    return kernel(*args, **static, target=target, interpret=target.platform != "gpu")


def _native(q: jax.Array, pages: jax.Array, *rows: jax.Array, rank: int, scale: float, decode: bool) -> jax.Array:
    return paged_attention_native(q, pages, pages, *rows, scale=scale, decode=decode, value_dim=rank)


@functools.cache
def _log_fallback(reason: str) -> None:
    logger.warning("latent attention runs on the slower XLA path: %s", reason)


IMPLEMENTATIONS = {
    "xla": functools.partial(latent_attention, implementation="xla"),
    "native": functools.partial(latent_attention, implementation="native"),
    "triton": functools.partial(latent_attention, implementation="triton"),
}
