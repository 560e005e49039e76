"""Mamba-2 (arXiv:2405.21060): what it keeps of a sequence are a matrix of each head and a few inputs."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from jserve.batch import LayerKV, SlotArray, StepContext
from jserve.config import ModelConfig
from jserve.config.hybrid import Mamba2Config
from jserve.layers.build import TENSOR_AXIS, Build
from jserve.layers.causal_conv import causal_conv
from jserve.layers.fused_source import HeadParts, Split
from jserve.layers.linear import Linear
from jserve.layers.norm import over_rms
from jserve.layers.source import Source, Tensor
from pallas_kernels.gated_delta import gated_delta


class Mamba2(nnx.Module):
    """Groups of heads, which share what they write under and read with, are split over the tensor axis; with more
    devices than groups, each device has some heads of a group and all that these share.
    """

    def __init__(self, build: Build, config: ModelConfig) -> None:
        mamba, hidden = config.mixer, config.hidden_size
        assert isinstance(mamba, Mamba2Config)
        self.copies = group_copies(mamba, build.tensor_parallel)
        self.groups = groups = mamba.groups * self.copies
        self.heads = heads = mamba.heads // groups
        inner = heads * mamba.head_dim
        self.sizes = sizes = (inner, inner, mamba.state, mamba.state, heads)

        def parts(name: str, sizes: tuple[int, ...], inner: tuple[int, ...], shared: tuple[int, int]) -> Source:
            return HeadParts(name, groups, sizes, inner, frozenset(shared), self.copies)

        self.in_proj = Linear(
            build,
            parts("weight", sizes, (hidden,), (2, 3)),
            (hidden, groups, sum(sizes)),
            shard=1,
            bias=parts("bias", sizes, (), (2, 3)) if mamba.bias else None,
        )
        self.conv1d = GroupsConv(
            build,
            parts("weight", sizes[1:4], (1, mamba.conv_width), (1, 2)),
            parts("bias", sizes[1:4], (), (1, 2)) if mamba.conv_bias else None,
            (groups, sum(sizes[1:4]), 1, mamba.conv_width),
        )
        self.dt_bias = build.param(Split("dt_bias", (groups, heads)), (groups, heads), 0)
        self.A_log = build.param(Split("A_log", (groups, heads)), (groups, heads), 0)
        self.D = build.param(Split("D", (groups, heads)), (groups, heads), 0)
        self.norm = None if mamba.norm == "none" else GateNorm(build, (groups, inner))
        self.out_proj = Linear(
            build,
            Tensor("weight", (hidden, groups * inner)),
            (groups * inner, hidden),
            shard=0,
            bias=Tensor("bias", (hidden,)) if mamba.bias else None,
        )
        self.mamba, self.eps, self.build = mamba, config.norm_eps, build

    def __call__(self, x: jax.Array, kept: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        """x: [T, E] to [T, E], and the layer's windows and states after the step's tokens."""
        bias = None if self.conv1d.bias is None else self.conv1d.bias[...]
        parts = self._parts(x)
        args = (parts, kept, self.conv1d.weight[...], bias, self.dt_bias[...], self.A_log[...], self.D[...])
        if self.build.tensor_parallel == 1:
            y, kept = self._local(*args, context)
        else:
            groups, rows = PartitionSpec(None, TENSOR_AXIS), PartitionSpec(TENSOR_AXIS)
            specs = (groups, groups, rows, rows, rows, rows, rows, PartitionSpec())
            y, kept = self.build.spread(self._local, specs, (groups, groups))(*args, context)
        if self.norm is not None:
            # The norm is over all heads of a group, whichever devices have them.
            normed = over_rms(y.reshape(x.shape[0], self.mamba.groups, -1), self.eps).reshape(y.shape)
            y = self.norm.weight[...] * normed.astype(x.dtype)
        if self.mamba.norm == "before_gate":
            y = y * jax.nn.silu(parts[:, :, : self.sizes[0]].astype(jnp.float32))
        return self.out_proj(y.reshape(x.shape[0], -1).astype(x.dtype)), kept

    def _parts(self, x: jax.Array) -> jax.Array:
        """[T, E] to [T, G, gate + x + B + C + dt]."""
        parts, multipliers = self.in_proj(x), self.mamba.multipliers
        if set(multipliers) == {1.0}:
            return parts
        return parts * jnp.asarray(np.repeat(multipliers, self.sizes), parts.dtype)

    def _local(
        self,
        parts: jax.Array,
        kept: LayerKV,
        conv: jax.Array,
        bias: jax.Array | None,
        dt_bias: jax.Array,
        a_log: jax.Array,
        skip: jax.Array,
        context: StepContext,
    ) -> tuple[jax.Array, LayerKV]:
        """parts: [T, G, gate + x + B + C + dt]. Returns f32[T, G, heads * P], gated unless the norm is first."""
        window, states = kept
        rows, starts, mamba = context.states, context.rows.query_start, self.mamba
        assert rows is not None
        tokens, groups, _ = parts.shape
        inner, size = self.sizes[0], sum(self.sizes[1:4])
        gate, mixed, dt = parts[:, :, :inner], parts[:, :, inner : inner + size], parts[:, :, inner + size :]
        flat = window.reshape(window.shape[0], groups * size, -1)
        made, flat = causal_conv(mixed.reshape(tokens, -1), conv.reshape(groups * size, -1), flat, starts, rows)
        made = made if bias is None else made + bias.reshape(-1).astype(jnp.float32)
        made = jax.nn.silu(made).astype(parts.dtype).astype(jnp.float32).reshape(tokens, groups, size)
        values = made[:, :, :inner].reshape(tokens, -1, mamba.head_dim)
        step = jax.nn.softplus(dt.astype(jnp.float32) + dt_bias.astype(jnp.float32))
        step = jnp.clip(step, *mamba.step_limit)
        out, states = gated_delta(
            made[:, :, inner + mamba.state :],
            made[:, :, inner : inner + mamba.state],
            values,
            (-jnp.exp(a_log.astype(jnp.float32)) * step).reshape(tokens, -1),
            step.reshape(tokens, -1),
            states,
            rows.slots,
            rows.is_fresh,
            starts,
            corrects=False,
            decode=context.is_decode,
        )
        out += skip.astype(jnp.float32).reshape(-1, 1) * values
        y = out.reshape(gate.shape)
        if mamba.norm != "before_gate":
            y *= jax.nn.silu(gate.astype(jnp.float32))
        return y, (flat.reshape(window.shape), states)


class GroupsConv(nnx.Module):
    """Weight and bias of a convolution over what each group of heads is given."""

    def __init__(self, build: Build, weight: Source, bias: Source | None, shape: tuple[int, ...]) -> None:
        self.weight = build.param(weight, shape, 0)
        self.bias = None if bias is None else build.param(bias, shape[:2], 0)


class GateNorm(nnx.Module):
    """The weight of the norm behind the gate."""

    def __init__(self, build: Build, shape: tuple[int, int]) -> None:
        self.weight = build.param(Split("weight", shape), shape, 0)


def group_copies(mamba: Mamba2Config, tensor_parallel: int) -> int:
    """How often what a group shares is kept, so that the tensor axis divides the groups."""
    return max(1, tensor_parallel // mamba.groups)


def mamba2_arrays(build: Build, config: ModelConfig) -> tuple[SlotArray, ...]:
    """What `Mamba2` keeps: the inputs that the next token's convolution sees, and a matrix of each head."""
    mamba = config.mixer
    assert isinstance(mamba, Mamba2Config)
    groups = mamba.groups * group_copies(mamba, build.tensor_parallel)
    size = mamba.heads // groups * mamba.head_dim + 2 * mamba.state
    window = SlotArray(groups, (size, mamba.conv_width - 1), build.activations)
    return window, SlotArray(mamba.heads, (mamba.state, mamba.head_dim), jnp.dtype("float32"))
