"""Gated DeltaNet (arXiv:2412.06464): what it keeps of a sequence are a matrix of each head and a few inputs."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jserve.batch import LayerKV, SlotArray, StepContext
from jserve.config import ModelConfig
from jserve.config.hybrid import GatedDeltaConfig
from jserve.layers.build import TENSOR_AXIS, Build
from jserve.layers.causal_conv import causal_conv
from jserve.layers.fused_source import HeadParts, Split
from jserve.layers.linear import Linear
from jserve.layers.norm import over_rms
from jserve.layers.source import Tensor
from pallas_kernels.gated_delta import gated_delta

NORM_EPS = 1e-6
"""Epsilon under the root of a query's or key's length."""


class GatedDelta(nnx.Module):
    """Key heads, each with its value heads, are split over the tensor axis. Checkpoints of Qwen3-Next have queries,
    keys, values and gates of a key head side by side in one product; those of Qwen3.5 (`apart`) have four.
    """

    def __init__(self, build: Build, config: ModelConfig, *, apart: bool = False) -> None:
        delta, hidden = config.mixer, config.hidden_size
        assert isinstance(delta, GatedDeltaConfig)
        heads, groups, sizes = delta.key_heads, delta.groups, delta.parts
        gates, inputs = groups * delta.value_dim, (hidden,)

        def product(name: str, size: int, source: HeadParts | Split | None = None) -> Linear:
            source = source or Split("weight", (heads, size), inputs)
            return Linear(build, source, (hidden, heads, size), shard=1)

        if apart:
            self.in_proj_qkv = product("in_proj_qkv", sum(sizes), HeadParts("weight", heads, sizes, inputs))
            self.in_proj_z = product("in_proj_z", gates)
            self.in_proj_b, self.in_proj_a = product("in_proj_b", groups), product("in_proj_a", groups)
        else:
            self.in_proj_qkvz = product("in_proj_qkvz", sum(sizes) + gates)
            self.in_proj_ba = product("in_proj_ba", 2 * groups)
        self.conv1d = HeadsConv(build, heads, sizes, delta.conv_width)
        self.dt_bias = build.param(Split("dt_bias", (heads, groups)), (heads, groups), 0)
        self.A_log = build.param(Split("A_log", (heads, groups)), (heads, groups), 0)
        self.norm = GateNorm(build, delta.value_dim)
        inner = heads * gates
        self.out_proj = Linear(build, Tensor("weight", (hidden, inner)), (inner, hidden), shard=0)
        self.apart, self.delta, self.eps, self.build = apart, delta, config.norm_eps, build

    def __call__(self, x: jax.Array, kept: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        """x: [T, E] to [T, E], and the layer's windows and states after the step's tokens."""
        qkv, z, b, a = self._project(x)
        weights = (self.conv1d.weight[...], self.dt_bias[...], self.A_log[...], self.norm.weight[...])
        if self.build.tensor_parallel == 1:
            y, kept = self._local(qkv, z, b, a, kept, *weights, context)
        else:
            heads, rows, whole = PartitionSpec(None, TENSOR_AXIS), PartitionSpec(TENSOR_AXIS), PartitionSpec()
            specs = (heads, heads, heads, heads, heads, rows, rows, rows, whole, whole)
            y, kept = self.build.spread(self._local, specs, (heads, heads))(qkv, z, b, a, kept, *weights, context)
        return self.out_proj(y.reshape(x.shape[0], -1)), kept

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """[T, E] to queries, keys and values of each key head, gates, and what makes beta and decay."""
        if self.apart:
            return self.in_proj_qkv(x), self.in_proj_z(x), self.in_proj_b(x), self.in_proj_a(x)
        qkvz, ba = self.in_proj_qkvz(x), self.in_proj_ba(x)
        size, groups = sum(self.delta.parts), self.delta.groups
        return qkvz[:, :, :size], qkvz[:, :, size:], ba[:, :, :groups], ba[:, :, groups:]

    def _local(
        self,
        qkv: jax.Array,
        z: jax.Array,
        b: jax.Array,
        a: jax.Array,
        kept: LayerKV,
        conv: jax.Array,
        dt_bias: jax.Array,
        a_log: jax.Array,
        norm: jax.Array,
        context: StepContext,
    ) -> tuple[jax.Array, LayerKV]:
        """qkv: [T, K, 2 D + G V]; z: [T, K, G V]; b, a: [T, K, G]. Returns [T, K, G V]."""
        window, states = kept
        rows, starts, delta = context.states, context.rows.query_start, self.delta
        assert rows is not None
        tokens, heads, size = qkv.shape
        flat = window.reshape(window.shape[0], heads * size, -1)
        made, flat = causal_conv(qkv.reshape(tokens, -1), conv.reshape(heads * size, -1), flat, starts, rows)
        made = jax.nn.silu(made).astype(qkv.dtype).astype(jnp.float32).reshape(tokens, heads, size)
        query, key = made[:, :, : delta.key_dim], made[:, :, delta.key_dim : 2 * delta.key_dim]
        out, states = gated_delta(
            _unit(query) * delta.key_dim**-0.5,
            _unit(key),
            made[:, :, 2 * delta.key_dim :].reshape(tokens, -1, delta.value_dim),
            (-jnp.exp(a_log.astype(jnp.float32)) * jax.nn.softplus(a.astype(jnp.float32) + dt_bias)).reshape(
                tokens, -1
            ),
            jax.nn.sigmoid(b.astype(jnp.float32)).reshape(tokens, -1),
            states,
            rows.slots,
            rows.is_fresh,
            starts,
            decode=context.is_decode,
        )
        normed = (norm * over_rms(out.astype(z.dtype), self.eps).astype(z.dtype)).astype(jnp.float32)
        y = normed.reshape(z.shape) * jax.nn.silu(z.astype(jnp.float32))
        return y.astype(z.dtype), (flat.reshape(window.shape), states)


class HeadsConv(nnx.Module):
    """The weight of a convolution over the queries, keys and values of each key head, `[K, 2 D + G V, 1, W]`."""

    def __init__(self, build: Build, heads: int, sizes: tuple[int, ...], width: int) -> None:
        self.weight = build.param(HeadParts("weight", heads, sizes, (1, width)), (heads, sum(sizes), 1, width), 0)


class GateNorm(nnx.Module):
    """The weight of the norm of each value head."""

    def __init__(self, build: Build, size: int) -> None:
        self.weight = build.param(Tensor("weight", (size,)), (size,))


def gated_delta_arrays(build: Build, config: ModelConfig) -> tuple[SlotArray, ...]:
    """What `GatedDelta` keeps: the inputs that the next token's convolution sees, and a matrix of each value head."""
    delta = config.mixer
    assert isinstance(delta, GatedDeltaConfig)
    window = SlotArray(delta.key_heads, (sum(delta.parts), delta.conv_width - 1), build.activations)
    return window, SlotArray(delta.value_heads, (delta.key_dim, delta.value_dim), jnp.dtype("float32"))


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + NORM_EPS)
