"""Products with weights in 8 or 4 bits: one operation for integers and float8, whole channels and groups.

Owns the choice of an implementation and nothing else. `reference.py` is the definition, `xla.py` runs
everywhere, `triton_product.py` is the kernel for NVIDIA GPUs.
"""

import functools
import logging
from typing import Any

import jax

from ..paged_attention.target import Target
from .reference import ACTIVATIONS, dequantize, reference
from .tiling import MANY_ROWS
from .xla import quant_matmul_xla

__all__ = ["ACTIVATIONS", "IMPLEMENTATIONS", "dequantize", "quant_matmul"]

logger = logging.getLogger(__name__)


def quant_matmul(
    x: jax.Array,
    values: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None = None,
    group_index: jax.Array | None = None,
    input_scale: jax.Array | None = None,
    *,
    activations: str = "float",
    implementation: str = "auto",
) -> jax.Array:
    """x times the transpose of the weight that `dequantize` gives; sums and results are float32.

    The weight is (values - zero) * scale: scale and zero belong to an output (G = 1) or to a group of inputs
    of an output. Input k is of group k // (K / G), or of `group_index[k]` where there is one.

    Args:
        x: [T, K], float32, bfloat16 or float16.
        values: [N, K] in int8 or float8_e4m3fn; or uint8 [N, K / 2], two codes of 4 bits in a byte: that of
            input 2i in the low half, that of input 2i + 1 in the high one.
        scale: [N, G], any float type.
        zero: int8[N, G]; None means 0, and 8 for codes of 4 bits.
        group_index: i32[K].
        input_scale: f32[], the scale that x is divided by before it is rounded; None takes each row's own.
        activations: "float" multiplies x as it is; "int8" and "fp8" round it to values of the weight's kind
            first. Needs G = 1, no zero, and values of that kind.
        implementation: "auto", "reference", "xla" or "triton". "auto" is triton on an NVIDIA GPU where it
            supports the types (else xla, with the reason logged once), but for many rows of float8, and xla
            everywhere else. "triton" on a CPU runs the Pallas interpreter: the same arithmetic, and slow.

    Returns:
        f32[T, N].

    Raises:
        NotImplementedError: the named implementation does not support these types; says what it does.
        ValueError: activations or implementation is unknown, or activations do not go with the values.
    """
    args = (x, values, scale, zero, group_index, input_scale)
    if activations not in ACTIVATIONS:
        raise ValueError(f"unknown activations {activations!r}; choose {', '.join(ACTIVATIONS)}")
    if activations != "float" and (
        zero is not None or scale.shape[-1] != 1 or values.dtype != ACTIVATIONS[activations]
    ):
        raise ValueError(
            f"activations in {activations} go with values of one symmetric scale per output in "
            f"{ACTIVATIONS[activations]}, not with {values.dtype} in {scale.shape[-1]} groups"
        )
    match implementation:
        case "auto":
            return _fastest(*args, activations=activations)
        case "xla":
            return quant_matmul_xla(*args, activations=activations)
        case "reference":
            return reference(*args, activations=activations)
        case "triton":
            return _triton(*args, activations=activations)
    raise ValueError(f"unknown implementation {implementation!r}; choose auto, reference, xla or triton")


def _fastest(*args: Any, activations: str) -> jax.Array:
    x = args[0]
    # Of float8 on both sides Triton makes float16 products; XLA's library has twice their rate, and time to use it.
    is_library_faster = activations == "fp8" and x.shape[0] > MANY_ROWS
    if Target.current().platform != "gpu" or is_library_faster:
        return quant_matmul_xla(*args, activations=activations)
    try:
        return _triton(*args, activations=activations)
    except NotImplementedError as reason:
        _log_fallback(str(reason))
        return quant_matmul_xla(*args, activations=activations)


def _triton(*args: Any, activations: str) -> jax.Array:
    # Imported on use: a CPU server never pays for loading Pallas.
    from .triton_product import quant_matmul_triton

    target = Target.current()
    return quant_matmul_triton(*args, activations=activations, target=target, interpret=target.platform != "gpu")


@functools.cache
def _log_fallback(reason: str) -> None:
    logger.warning("a product with quantized weights runs on the slower XLA path: %s", reason)


IMPLEMENTATIONS: dict[str, Any] = {
    "xla": functools.partial(quant_matmul, implementation="xla"),
    "triton": functools.partial(quant_matmul, implementation="triton"),
}
