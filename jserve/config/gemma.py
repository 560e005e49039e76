"""What the shape of Gemma 4 has that no other family's has. Imports no jax, as `config.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerHeads:
    """Keys and values of one layer, where layers differ."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class GemmaConfig:
    """How the layers of a Gemma 4 differ from one another."""

    heads: tuple[LayerHeads, ...]
    """Those of each layer."""
    sources: tuple[int, ...]
    """The layer whose keys and values each layer reads; its own, but in the last layers of the small models."""
    keys_are_values: frozenset[int] = frozenset()
    """Layers that have one product for keys and values."""
    wide_layers: frozenset[int] = frozenset()
    """Layers whose feed-forward block is twice as wide."""
    input_size: int = 0
    """Numbers that each layer is given of each token beside the residual; 0 where there are none."""
    input_vocab: int = 0
    """Rows of the table of these."""
