"""What a model's vector of a text goes through after it is pooled."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """A product with an activation: a Dense module of sentence-transformers, or a part of a classifier's head."""

    name: str
    """What its tensors are called in the checkpoint, without ".weight" and ".bias"."""
    inputs: int
    outputs: int
    activation: str = "identity"
    """As in `layers/dense.py`."""
    bias: bool = True
    norm: str = ""
    """Name of a LayerNorm without bias behind the activation; "" where there is none."""
    norm_eps: float = 1e-5
