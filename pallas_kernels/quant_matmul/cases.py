"""Shapes of real models on which products with quantized weights are tested and timed."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .. import KernelInputs

__all__ = ["CASES", "Case"]

EXACT = 2e-5
"""Values and conversions are exact: float32 sums in another order."""
ROUNDED_WEIGHT = 1.6e-2
"""A group's weight is rounded to bfloat16 once (2^-9 of it), and results are of order 1: of 60 seeds of each case the
largest error was 0.012.
"""
ROUNDED_INPUT = 8e-3
"""x / scale may fall on either side of the middle between two values: one step of one input, of order K^-0.5."""

TYPES = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn, "int4": np.uint8}


@dataclass(frozen=True, slots=True)
class Case:
    """T rows times a weight of N outputs and K inputs; `group` inputs share a scale, 0 means all."""

    name: str
    T: int
    N: int
    K: int
    kind: str
    group: int = 0
    asymmetric: bool = False
    act_order: bool = False
    activations: str = "float"
    static: bool = False
    dtype: str = "bfloat16"
    quick: bool = True

    @property
    def tolerance(self) -> float:
        if self.activations != "float":
            return ROUNDED_INPUT
        return ROUNDED_WEIGHT if self.group and self.dtype != "float32" else EXACT

    @property
    def groups(self) -> int:
        return -(-self.K // self.group) if self.group else 1

    @property
    def flops(self) -> int:
        return 2 * self.T * self.N * self.K

    @property
    def bytes_moved(self) -> int:
        """x and the weight once, the result once in float32."""
        weight = self.N * (self.K // (2 if self.kind == "int4" else 1) + 2 * self.groups)
        return self.T * self.K * jnp.dtype(self.dtype).itemsize + weight + 4 * self.T * self.N

    def make(self, seed: int) -> KernelInputs:
        """Random inputs in the order of `quant_matmul`'s parameters; results are of order 1."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((self.T, self.K)).astype(jnp.dtype(self.dtype))
        scale = rng.uniform(0.5, 1.5, (self.N, self.groups)) * self.K**-0.5
        if self.kind == "int4":
            values, size = rng.integers(0, 256, (self.N, self.K // 2)).astype(np.uint8), 4.6
        elif self.kind == "int8":
            values, size = rng.integers(-127, 128, (self.N, self.K)).astype(np.int8), 73.0
        else:
            values, size = rng.standard_normal((self.N, self.K)).astype(ml_dtypes.float8_e4m3fn), 1.0
        low, high = (0, 16) if self.kind == "int4" else (-20, 21)
        zero = rng.integers(low, high, (self.N, self.groups)).astype(np.int8) if self.asymmetric else None
        order = rng.permutation(self.K) // self.group if self.act_order else None
        args = (
            x,
            values,
            (scale / size).astype(np.float16 if self.group else np.float32),
            zero,
            None if order is None else order.astype(np.int32),
            np.float32(0.03) if self.static else None,
        )
        return KernelInputs(args, {"activations": self.activations})

    def shapes(self) -> KernelInputs:
        """The shapes and types of what `make` gives."""
        struct, groups = jax.ShapeDtypeStruct, (self.N, self.groups)
        args = (
            struct((self.T, self.K), jnp.dtype(self.dtype)),
            struct((self.N, self.K // (2 if self.kind == "int4" else 1)), TYPES[self.kind]),
            struct(groups, jnp.float16 if self.group else jnp.float32),
            struct(groups, jnp.int8) if self.asymmetric else None,
            struct((self.K,), jnp.int32) if self.act_order else None,
            struct((), jnp.float32) if self.static else None,
        )
        return KernelInputs(args, {"activations": self.activations})


_QUICK = (
    Case("int8_decode", 4, 96, 576, "int8", dtype="float32"),
    Case("int8_one_row_without_lanes", 1, 40, 15, "int8", dtype="float32"),
    Case("int8_prefill_bf16", 64, 96, 576, "int8"),
    Case("int8_asymmetric", 8, 96, 128, "int8", asymmetric=True, dtype="float32"),
    Case("int8_groups_decode", 2, 96, 512, "int8", group=128, asymmetric=True, dtype="float32"),
    Case("int8_w8a8", 8, 96, 576, "int8", activations="int8"),
    Case("int8_w8a8_static", 1, 96, 576, "int8", activations="int8", static=True),
    Case("fp8_decode", 1, 96, 576, "fp8", dtype="float32"),
    Case("fp8_prefill_bf16", 64, 96, 576, "fp8"),
    Case("fp8_w8a8", 8, 96, 576, "fp8", activations="fp8"),
    Case("fp8_w8a8_static", 8, 96, 576, "fp8", activations="fp8", static=True, dtype="float32"),
    Case("fp8_blocks", 8, 96, 512, "fp8", group=128),
    Case("int4_decode", 1, 96, 576, "int4", group=64, dtype="float32"),
    Case("int4_decode_lanes_over_groups", 2, 96, 4096, "int4", group=32, dtype="float32"),
    Case("int4_decode_asymmetric", 3, 96, 512, "int4", group=128, asymmetric=True, dtype="float32"),
    Case("int4_channels", 8, 96, 512, "int4", asymmetric=True, dtype="float32"),
    Case("int4_prefill_bf16", 64, 96, 512, "int4", group=128),
    Case("int4_act_order", 2, 96, 512, "int4", group=128, asymmetric=True, act_order=True, dtype="float32"),
    Case("int4_act_order_bf16", 64, 96, 512, "int4", group=32, act_order=True),
    # What no tile or block divides.
    Case("int4_three_rows_odd_outputs", 3, 37, 160, "int4", group=32, asymmetric=True),
    Case("int4_channels_tail_f16", 17, 70, 150, "int4", asymmetric=True, dtype="float16"),
    Case("int4_small_groups", 5, 40, 48, "int4", group=8, asymmetric=True),
    Case("int4_last_group_short", 3, 40, 152, "int4", group=64, asymmetric=True, act_order=True),
    Case("int8_groups_of_48", 9, 33, 96, "int8", group=48, asymmetric=True),
    Case("int8_65_rows_tail", 65, 70, 200, "int8"),
)
_ROWS = (1, 8, 32, 64, 2048)
_LAYERS = {
    "llama_3_1_8b_qkv": (6144, 4096),
    "llama_3_1_8b_output": (4096, 4096),
    "llama_3_1_8b_gate_up": (28672, 4096),
    "llama_3_1_8b_down": (4096, 14336),
    # Of one of eight devices.
    "llama_3_1_70b_qkv": (1280, 8192),
    "llama_3_1_70b_output": (8192, 1024),
    "llama_3_1_70b_gate_up": (7168, 8192),
    "llama_3_1_70b_down": (8192, 3584),
}
_KINDS = (
    ("int4", 128, True, "float", _ROWS),
    ("int4", 128, False, "float", (1, 64)),
    ("int8", 0, False, "float", (1, 32, 2048)),
    ("int8", 0, False, "int8", (1, 32, 2048)),
    ("fp8", 0, False, "fp8", (1, 32, 2048)),
    ("fp8", 128, False, "float", (1, 32, 2048)),
)
_FULL = tuple(
    Case(
        "_".join((layer, kind, *["asymmetric"] * asymmetric, *[activations] * (activations != "float"), str(T))),
        T,
        *shape,
        kind,
        group,
        asymmetric,
        activations=activations,
        quick=False,
    )
    for layer, shape in _LAYERS.items()
    for kind, group, asymmetric, activations, rows in _KINDS
    for T in rows
    if activations == "float" or layer.startswith("llama_3_1_8b")
)

_ACT_ORDER = tuple(
    Case(f"{layer}_int4_act_order_{T}", T, *_LAYERS[layer], "int4", 128, act_order=True, quick=False)
    for layer in ("llama_3_1_8b_gate_up", "llama_3_1_8b_down")
    for T in (1, 64, 2048)
)

CASES: tuple[Case, ...] = _QUICK + _FULL + _ACT_ORDER
