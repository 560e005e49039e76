"""What families share of which some layers keep a state in place of keys and values."""

from pathlib import Path
from typing import Any

from jserve.config import MOST_LAYERS
from jserve.config.fields import Fields
from jserve.config.hybrid import Mamba2Config

ATTENTION = "full_attention"
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}
"""What most families' classes take for a key of `read_mamba2` that is left out."""


def read_layers(
    raw: dict[str, Any], kind: str, attention: set[int], *, source: Path | str
) -> tuple[dict[str, Any], frozenset[int]]:
    """A configuration as if all layers were attention, and those that are of a `kind` that keeps a state.

    `attention` are the others where `layer_types` does not tell them. Raises CheckpointError where a type is unknown.
    """
    fields = Fields(raw, source)
    layers = fields.integer("num_hidden_layers", most=MOST_LAYERS)
    types = fields.for_each_layer("layer_types", layers)
    if types is None:
        types = [ATTENTION if layer in attention else kind for layer in range(layers)]
    unknown = [name for name in types if name not in (ATTENTION, kind)]
    if unknown:
        raise fields.wrong("layer_types", f"has {unknown[0]!r}; supported are {ATTENTION}, {kind}")
    states = frozenset(layer for layer, name in enumerate(types) if name == kind)
    return {**raw, "layer_types": [ATTENTION] * layers}, states


def read_mamba2(fields: Fields, *, inner: int | None = None) -> Mamba2Config:
    """Mamba-2 as most families' files say it; `inner` is the numbers of all heads where the file says that apart.

    Raises CheckpointError where a field is missing or impossible.
    """
    heads, groups = fields.integer("mamba_n_heads"), fields.integer("mamba_n_groups")
    inner = inner or fields.integer("mamba_expand") * fields.integer("hidden_size")
    head_dim = inner // heads if fields.get("mamba_d_head") in (None, "auto") else fields.integer("mamba_d_head")
    if heads % groups:
        raise fields.unlike("mamba_n_heads", f"a multiple of mamba_n_groups, {groups}")
    if head_dim * heads != inner:
        raise fields.unlike("mamba_d_head", f"{inner // heads}, what is left for each of {heads} heads")
    return Mamba2Config(
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        state=fields.integer("mamba_d_state"),
        conv_width=fields.integer("mamba_d_conv"),
        conv_bias=fields.boolean("mamba_conv_bias", default=True),
        bias=fields.boolean("mamba_proj_bias", default=False),
        step_limit=read_step_limit(fields),
    )


INFINITE = {"__float__": "Infinity"}
"""How transformers writes what JSON has no number for."""


def read_step_limit(fields: Fields) -> tuple[float, float]:
    """The least and the most that a step can be. Raises CheckpointError where the field is something else."""
    limit = fields.get("timeread_step_limit")
    if limit is None:
        return 0.0, float("inf")
    if isinstance(limit, list | tuple) and len(limit) == 2:
        bounds = [float("inf") if bound == INFINITE else bound for bound in limit]
        if all(type(bound) in (int, float) for bound in bounds) and 0 <= bounds[0] <= bounds[1]:
            return float(bounds[0]), float(bounds[1])
    raise fields.unlike("timeread_step_limit", "the least and the most that a step can be")
