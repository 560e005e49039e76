"""What the shape of a DeepSeek model has that no other family's has. Imports no jax, as `config.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupRouting:
    """How DeepSeek chooses a token's experts: among those of its best groups of neighbours."""

    scoring: str
    """ "softmax" or "sigmoid": what makes scores of the router's logits."""
    groups: int = 1
    chosen_groups: int = 1
    group_best: int = 1
    """A group counts as much as so many of its best experts together."""
    corrected: bool = False
    """Whether a bias of each expert takes part in the choice, though not in the weights."""
    scale: float = 1.0
    """What the weights of a token's experts are multiplied by."""


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Attention over latents: what the cache holds of a token is one for all heads (DeepSeek's MLA)."""

    rank: int
    """Numbers that keys and values of all heads are made of."""
    rope_dim: int
    """Numbers beside them that are rotated and are the same in the keys of all heads."""
    key_dim: int
    """Size of a head's key without what is rotated."""
    value_dim: int
    query_rank: int | None = None
    """Numbers that the queries of all heads are made of; None where they are made of the residual."""
