"""Gated short convolution (LFM2, arXiv:2511.23404, section 2): what it keeps of a sequence are a few inputs."""

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from jserve.batch import LayerKV, SlotArray, StepContext
from jserve.config import ModelConfig
from jserve.config.hybrid import ShortConvConfig
from jserve.layers.build import TENSOR_AXIS, Build
from jserve.layers.causal_conv import causal_conv
from jserve.layers.fused_source import Split
from jserve.layers.linear import Linear
from jserve.layers.source import Tensor


class Conv(nnx.Module):
    """Its weight, `[C, 1, W]` as in checkpoints, split by channel."""

    def __init__(self, build: Build, channels: int, width: int, *, bias: bool) -> None:
        shape = (channels, 1, width)
        self.weight = build.param(Tensor("weight", shape), shape, 0)
        self.bias = build.param(Tensor("bias", (channels,)), (channels,), 0) if bias else None


class ShortConv(nnx.Module):
    """out(c * conv(b * x)), where b, c and x are one product. Channels are split over the tensor axis."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        conv, hidden = config.mixer, config.hidden_size
        assert isinstance(conv, ShortConvConfig)
        self.in_proj = Linear(
            build,
            Split("weight", (3, hidden), (hidden,)),
            (hidden, 3, hidden),
            shard=2,
            bias=Split("bias", (3, hidden)) if conv.bias else None,
        )
        self.conv = Conv(build, hidden, conv.width, bias=conv.bias)
        self.out_proj = Linear(
            build,
            Tensor("weight", (hidden, hidden)),
            (hidden, hidden),
            shard=0,
            bias=Tensor("bias", (hidden,)) if conv.bias else None,
        )
        self.build = build

    def __call__(self, x: jax.Array, kept: LayerKV, context: StepContext) -> tuple[jax.Array, LayerKV]:
        """x: [T, E] to [T, E], and the layer's windows with the step's inputs in them."""
        (window,) = kept
        bias = None if self.conv.bias is None else self.conv.bias[...]
        args = (self.in_proj(x), self.conv.weight[...], bias, window, context)
        if self.build.tensor_parallel == 1:
            y, window = _mix(*args)
        else:
            channels, rows = PartitionSpec(None, TENSOR_AXIS), PartitionSpec(TENSOR_AXIS)
            specs = (PartitionSpec(None, None, TENSOR_AXIS), rows, rows, channels, PartitionSpec())
            y, window = self.build.spread(_mix, specs, (channels, channels))(*args)
        return self.out_proj(y), (window,)


def _mix(
    parts: jax.Array, weight: jax.Array, bias: jax.Array | None, window: jax.Array, context: StepContext
) -> tuple[jax.Array, jax.Array]:
    """parts: [T, 3, C] of b, c and x. Returns [T, C] and the windows."""
    assert context.states is not None
    inputs = parts[:, 0] * parts[:, 2]
    y, window = causal_conv(inputs, weight[:, 0], window, context.rows.query_start, context.states)
    y = (y if bias is None else y + bias).astype(parts.dtype)
    return parts[:, 1] * y, window


def short_conv_arrays(build: Build, config: ModelConfig) -> tuple[SlotArray, ...]:
    """What `ShortConv` keeps: the inputs of all channels that the next token still sees."""
    assert isinstance(config.mixer, ShortConvConfig)
    return (SlotArray(config.hidden_size, (config.mixer.width - 1,), build.activations),)
