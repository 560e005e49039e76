"""What layers that keep a state in place of keys and values are like. Imports no jax, as `config.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShortConvConfig:
    """A gated convolution over `width` tokens (LFM2)."""

    width: int
    """W"""
    bias: bool = False


@dataclass(frozen=True, slots=True)
class GatedDeltaConfig:
    """The gated delta rule (arXiv:2412.06464), behind a convolution over `conv_width` tokens."""

    key_heads: int
    value_heads: int
    """As many for each key head."""
    key_dim: int
    value_dim: int
    conv_width: int


Mixer = ShortConvConfig | GatedDeltaConfig
