"""LongRoPE: which of its two sets of factors an engine uses, compared with transformers."""

from pathlib import Path

import pytest

from tests.worlds import greedy, make_model, reference, reference_greedy, run, start_engine, tokens_of

ORIGINAL = 32
FIELDS = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [1.0, 1.1, 1.5, 2.0],
        "long_factor": [1.0, 2.0, 4.0, 9.0],
    },
}


@pytest.mark.parametrize(
    ("max_model_len", "prompt", "count"), [(ORIGINAL, 9, ORIGINAL - 9), (256, ORIGINAL + 5, 40)], ids=["short", "long"]
)
def test_the_longest_allowed_sequence_chooses_the_factors(
    max_model_len: int, prompt: int, count: int, tmp_path: Path, executables: str
) -> None:
    """transformers chooses by the sequence it sees: here one that is short or long from its first step on."""
    folder = make_model(tmp_path, "Phi3ForCausalLM", **FIELDS)
    core = start_engine(folder, executables, early=True, max_model_len=max_model_len)
    tokens = list(range(3, 3 + prompt))
    deltas = run(core, {"it": tokens}, greedy(count))
    assert tokens_of(deltas["it"]) == reference_greedy(reference(folder), tokens, count)
