"""What families share of which some layers keep a state in place of keys and values."""

from pathlib import Path
from typing import Any

from jserve.config import MOST_LAYERS
from jserve.config.fields import Fields

ATTENTION = "full_attention"


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
