"""`--speculative-config` takes vLLM's words, and refuses by name what jserve lacks."""

import pytest

from jserve.commands.options import parse
from jserve.config.speculation import SpeculativeConfig, read_speculative_config
from jserve.errors import ConfigError

DOCUMENTED = '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}'
"""The value that vLLM's documentation shows."""


def test_vllms_documented_value_is_taken() -> None:
    config = read_speculative_config(DOCUMENTED)
    assert config == SpeculativeConfig(method="ngram", num_speculative_tokens=5, prompt_lookup_max=4)
    assert config.lookup == (4, 4)
    assert parse(["--model", "m", "--speculative-config", DOCUMENTED])[0].speculative_config == config
    assert parse(["--model", "m"])[0].speculative_config is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"method": "suffix", "suffix_decoding_max_tree_depth": 24}', "method 'suffix' is not supported"),
        ('{"method": "draft_model", "model": "m"}', "method 'draft_model' is not supported"),
        ('{"method": "mtp"}', "method 'mtp' is not supported"),
        ('{"method": "eagle3", "model": "m"}', "method 'eagle3' is not supported"),
        ('{"method": "magic"}', "the only method is ngram"),
        ('{"method": "ngram", "num_speculative_tokens": 0}', "num_speculative_tokens is 0"),
        ('{"method": "ngram", "prompt_lookup_min": 3, "prompt_lookup_max": 2}', "in this order"),
        ('{"method": "ngram", "colour": 1}', "colour"),
        ("ngram", "that is not what it must be"),
    ],
)
def test_what_is_not_there_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_speculative_config(text)
