"""The tokens of a GGUF file that end an answer, as llama.cpp knows them: by role, and by name.

Many files name only one `eos`, and some give the others the type of ordinary text, which would split them in prompts.
llama.cpp (llama-vocab.cpp, `special_eog_ids`) takes these names for control tokens whatever the file says of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROLES = ("eos", "eot", "eom")
_NAMES = frozenset(
    {
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
        *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        *("<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    }
)
_SEVERAL_MESSAGES = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})
"""Where a vocabulary has both of a pair, <|end|> ends a message of the answer, and another one follows."""


def control_tokens(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of these names that the file has, with their ids: control tokens, whatever type it gives them."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return {}
    return {token: number for number, token in enumerate(tokens) if isinstance(token, str) and token in _NAMES}


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """Ids of every token that ends an answer, the file's own `eos` first."""
    ids = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _ROLES]
    named = control_tokens(metadata)
    if any(pair <= named.keys() for pair in _SEVERAL_MESSAGES):
        end_of_message = named.pop("<|end|>", None)
        ids = [number for number in ids if number != end_of_message]
    return list(dict.fromkeys(number for number in (*ids, *named.values()) if type(number) is int))
