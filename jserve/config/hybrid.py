"""What layers that keep a state in place of keys and values are like. Imports no jax, as `config.py`."""

from dataclasses import dataclass
from typing import Literal


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

    @property
    def groups(self) -> int:
        """Value heads of a key head."""
        return self.value_heads // self.key_heads

    @property
    def parts(self) -> tuple[int, int, int]:
        """Numbers of a key head's query, key and values."""
        return self.key_dim, self.key_dim, self.groups * self.value_dim


@dataclass(frozen=True, slots=True)
class Mamba2Config:
    """Mamba-2 (arXiv:2405.21060), behind a convolution over `conv_width` tokens."""

    heads: int
    groups: int
    """Heads of a group share what they write under and read with."""
    head_dim: int
    state: int
    """Numbers of a head's state for each of its numbers."""
    conv_width: int
    conv_bias: bool
    bias: bool
    step_limit: tuple[float, float] = (0.0, float("inf"))
    """The least and the most that a state's step can be."""
    norm: Literal["behind_gate", "before_gate", "none"] = "behind_gate"
    """Where the norm of each group stands."""
    multipliers: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """What the gate, the values, what these are written under, what they are read with and the steps are times."""


@dataclass(frozen=True, slots=True)
class FalconH1Config(Mamba2Config):
    """Mamba-2 beside attention in every layer, and what each part of a layer is times."""

    mamba_input: float = 1.0
    mamba_output: float = 1.0
    attention_input: float = 1.0
    attention_output: float = 1.0
    mlp_gate: float = 1.0
    mlp_output: float = 1.0


@dataclass(frozen=True, slots=True)
class NemotronHConfig(Mamba2Config):
    """Layers that are one block each: Mamba-2, attention or a feed-forward block."""

    feed_forward_layers: frozenset[int] = frozenset()


Mixer = ShortConvConfig | GatedDeltaConfig | Mamba2Config
