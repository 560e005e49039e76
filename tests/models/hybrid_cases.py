"""Tiny models of which some layers keep a state in place of keys and values."""

from typing import Any

LFM2: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
    "block_multiple_of": 16,
}
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("Lfm2ForCausalLM", LFM2),
}
"""By the names of `test_parity.CASES`."""
