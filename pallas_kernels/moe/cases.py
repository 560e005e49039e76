"""Shapes of real mixtures on which their experts are tested and timed.

Routing is uneven, as it is in practice; some ids lie outside the experts. What nobody chose holds NaN: an
implementation that computes with it, to mask it later, shows it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from .. import KernelInputs
from .packed import PackedExperts

__all__ = ["CASES", "Case"]

# Largest |error| / max(1, |reference|) of a correct implementation. The 16-bit types also round the activated
# inner values, half an ulp each (2^-9 and 2^-12). With biases single inner values are large: of 150 seeds of
# "decode_biases" the largest error was 0.015 and half were over 0.0066; without, in float16, the largest was 0.0006.
TOLERANCES = {"float32": 2e-5, "float16": 1e-3, "bfloat16": 2e-2}
# Weights in groups are rounded to the type as well before they are multiplied. In float16 half of 150 seeds were over
# 0.0009 and the largest error was 0.0018; in bfloat16 the largest of 60 seeds was 0.0194.
GROUP_TOLERANCES = {"float32": 2e-5, "float16": 2.5e-3, "bfloat16": 3e-2}


def silu_gate(gate: jax.Array, up: jax.Array) -> jax.Array:
    """What most mixtures compute between the two products."""
    return jax.nn.silu(gate) * up


@dataclass(frozen=True, slots=True)
class Case:
    """T tokens, J experts for each of X, E embed, F inner size; `elsewhere` is the share of ids not in 0 .. X-1."""

    name: str
    T: int
    J: int
    X: int
    E: int
    F: int
    dtype: str = "bfloat16"
    biases: bool = False
    bits: bool = False  # give bfloat16 as uint16
    packed: str = ""  # "int8", "fp8", "int4" or "mxfp4"
    group: int = 0  # inputs that share a scale; 0: all
    asymmetric: bool = False
    elsewhere: float = 0.0
    quick: bool = True

    @property
    def tolerance(self) -> float:
        return (GROUP_TOLERANCES if self.group else TOLERANCES)[self.dtype]

    @property
    def flops(self) -> int:
        return 6 * self._routed * self.E * self.F

    @property
    def bytes_moved(self) -> int:
        """The experts that at least one token is sent to, once each, and the tokens in and out."""
        width = jnp.dtype(self.dtype).itemsize
        ids, _ = self._routing(np.random.default_rng(0))
        chosen = len(np.unique(ids[(ids >= 0) & (ids < self.X)]))
        weight = {"": width, "int8": 1, "fp8": 1, "int4": 0.5, "mxfp4": 0.5}[self.packed]
        if self.packed and self.group:
            weight += (1 if self.packed == "mxfp4" else 2) / self.group
        return round(chosen * 3 * self.E * self.F * weight) + self.T * self.E * (width + 4)

    def make(self, seed: int) -> KernelInputs:
        """Random inputs in the order of `moe`'s parameters."""
        rng = np.random.default_rng(seed)
        ids, weights = self._routing(rng)
        chosen = np.isin(np.arange(self.X), ids)

        def normal(*shape: int) -> jax.Array:
            """Weights of unit variance after a product over axis 1; NaN for the experts that nobody chose."""
            values = rng.standard_normal(shape, np.float32) * np.float32(shape[1] ** -0.5 if len(shape) > 2 else 1)
            values[~chosen] = np.nan
            array = jnp.asarray(values, self.dtype)
            return jax.lax.bitcast_convert_type(array, jnp.uint16) if self.bits else array

        x = jnp.asarray(rng.standard_normal((self.T, self.E), np.float32), self.dtype)
        stacks: tuple[Any, ...] = (
            normal(self.X, self.E, 2 * self.F).reshape(self.X, self.E, 2, self.F),
            normal(self.X, self.F, self.E),
        )
        if self.packed:
            stacks = self._pack(rng, chosen, 2, self.F, self.E), self._pack(rng, chosen, self.E, self.F)
        biases = (normal(self.X, 2 * self.F).reshape(self.X, 2, self.F), normal(self.X, self.E)) if self.biases else ()
        return KernelInputs((x, jnp.asarray(ids), jnp.asarray(weights), *stacks, *biases), {"activate": silu_gate})

    def shapes(self) -> KernelInputs:
        """The shapes and types of what `make` gives."""
        struct, dtype = jax.ShapeDtypeStruct, jnp.dtype(jnp.uint16 if self.bits else self.dtype)
        stacks: list[Any] = [struct(shape, dtype) for shape in ((self.X, self.E, 2, self.F), (self.X, self.F, self.E))]
        if self.packed:
            stacks = [self._packed_shapes(2, self.F, self.E), self._packed_shapes(self.E, self.F)]
        biases = [(self.X, 2, self.F), (self.X, self.E)] if self.biases else []
        args = (
            struct((self.T, self.E), jnp.dtype(self.dtype)),
            struct((self.T, self.J), jnp.int32),
            struct((self.T, self.J), jnp.float32),
            *stacks,
            *(struct(shape, dtype) for shape in biases),
        )
        return KernelInputs(args, {"activate": silu_gate})

    def _packed_shapes(self, *shape: int) -> PackedExperts:
        """The inverse of `_pack`."""
        struct: Any = jax.ShapeDtypeStruct
        *outputs, inputs = (self.X, *shape)
        per_group = (*outputs, inputs // self.group if self.group else 1)
        has_pairs = self.packed in ("int4", "mxfp4")
        return PackedExperts(
            struct((*outputs, inputs // 2), jnp.uint8) if has_pairs else struct((*outputs, inputs), jnp.int8),
            struct(per_group, jnp.uint8 if self.packed == "mxfp4" else jnp.uint16 if self.group else jnp.float32),
            struct(per_group, jnp.int8) if self.asymmetric else None,
            self.packed,
        )

    def _pack(self, rng: np.random.Generator, chosen: np.ndarray, *shape: int) -> PackedExperts:
        """Weights [X, *shape] whose products are of order 1; scales that are no number where nobody chose."""
        *outputs, inputs = (self.X, *shape)
        per_group = (*outputs, inputs // self.group if self.group else 1)
        size = {"int8": 73.0, "fp8": 1.0, "int4": 4.6, "mxfp4": 2.9}[self.packed]
        scale = rng.uniform(0.5, 1.5, per_group) * inputs**-0.5 / size
        scale[~chosen] = np.nan
        if self.packed == "fp8":
            values = rng.standard_normal((*outputs, inputs)).astype(ml_dtypes.float8_e4m3fn).view(np.int8)
        elif self.packed == "int8":
            values = rng.integers(-127, 128, (*outputs, inputs)).astype(np.int8)
        else:
            values = rng.integers(0, 256, (*outputs, inputs // 2)).astype(np.uint8)
        low, high = (0, 16) if self.packed == "int4" else (-20, 21)
        zero = jnp.asarray(rng.integers(low, high, per_group), jnp.int8) if self.asymmetric else None
        if self.packed == "mxfp4":
            scale = scale.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
        elif self.group:
            scale = scale.astype(ml_dtypes.bfloat16).view(np.uint16)
        else:
            scale = scale.astype(np.float32)
        return PackedExperts(jnp.asarray(values), jnp.asarray(scale), zero, self.packed)

    @property
    def _routed(self) -> int:
        return round(self.T * self.J * (1 - self.elsewhere))

    def _routing(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Experts of each token, all different and a few of them favoured, and their weights."""
        favour = rng.standard_normal(self.X)
        scores = favour + rng.gumbel(size=(self.T, self.X))
        ids = np.argsort(-scores, axis=1)[:, : self.J].astype(np.int32)
        gone = rng.random(ids.shape) < self.elsewhere
        ids = np.where(gone, rng.choice(np.array([-1, -self.X, self.X, self.X + 3], np.int32), ids.shape), ids)
        weights = rng.dirichlet(np.ones(self.J), self.T).astype(np.float32)
        return ids.astype(np.int32), weights


CASES: tuple[Case, ...] = (
    Case("two_tokens_f32", 2, 2, 8, 32, 48, "float32"),
    Case("decode_f32", 8, 4, 32, 64, 24, "float32", elsewhere=0.3),
    Case("decode_biases", 16, 2, 8, 64, 40, biases=True, elsewhere=0.1),
    Case("decode_bits", 16, 2, 8, 64, 40, biases=True, bits=True, elsewhere=0.1),
    Case("prefill_f32", 150, 3, 7, 40, 56, "float32", biases=True, elsewhere=0.2),
    Case("prefill_f16", 64, 8, 16, 64, 32, "float16"),
    Case("prefill_of_one_expert", 200, 1, 4, 32, 32, "float32"),
    Case("decode_int8_f32", 3, 2, 4, 64, 48, "float32", packed="int8", elsewhere=0.2),
    Case("decode_int4_f32", 8, 2, 6, 64, 96, "float32", biases=True, packed="int4", group=32, asymmetric=True),
    Case("prefill_mxfp4_f32", 50, 2, 4, 64, 96, "float32", biases=True, packed="mxfp4", group=32, elsewhere=0.2),
    Case("decode_mxfp4", 16, 2, 8, 64, 96, biases=True, packed="mxfp4", group=32),
    Case("decode_mxfp4_cut_f32", 4, 2, 4, 64, 48, "float32", packed="mxfp4", group=16),
    Case("prefill_fp8_blocks", 60, 2, 4, 64, 96, packed="fp8", group=32),
    Case("decode_int8_groups_f16", 8, 2, 4, 64, 96, "float16", packed="int8", group=16, asymmetric=True),
    Case("everything_elsewhere", 4, 2, 8, 32, 32, "float32", elsewhere=1.0),
    Case("mixtral_8x7b_decode_32", 32, 2, 8, 4096, 14336, quick=False),
    Case("qwen3_30b_a3b_decode_1", 2, 8, 128, 2048, 768, quick=False),
    Case("qwen3_30b_a3b_decode_32", 32, 8, 128, 2048, 768, quick=False),
    Case("qwen3_30b_a3b_prefill_4k", 4096, 8, 128, 2048, 768, quick=False),
    Case("qwen3_30b_a3b_ep8_prefill_4k", 4096, 8, 16, 2048, 768, elsewhere=0.875, quick=False),
    Case("gpt_oss_20b_decode_32", 32, 4, 32, 2880, 2880, biases=True, quick=False),
    Case("gpt_oss_20b_mxfp4_decode_32", 32, 4, 32, 2880, 2880, biases=True, packed="mxfp4", group=32, quick=False),
    Case("gpt_oss_20b_mxfp4_tp8_decode_32", 32, 4, 32, 2880, 360, biases=True, packed="mxfp4", group=8, quick=False),
    Case("gpt_oss_20b_mxfp4_prefill_4k", 4096, 4, 32, 2880, 2880, biases=True, packed="mxfp4", group=32, quick=False),
    Case("qwen3_30b_a3b_int4_decode_32", 32, 8, 128, 2048, 768, packed="int4", group=128, asymmetric=True, quick=False),
    Case("qwen3_30b_a3b_fp8_decode_32", 32, 8, 128, 2048, 768, packed="fp8", group=128, quick=False),
    Case("qwen3_30b_a3b_fp8_prefill_4k", 4096, 8, 128, 2048, 768, packed="fp8", group=128, quick=False),
    Case("mixtral_8x7b_int8_decode_32", 32, 2, 8, 4096, 14336, packed="int8", quick=False),
    Case("olmoe_7b_decode_32", 32, 8, 64, 2048, 1024, quick=False),
)
