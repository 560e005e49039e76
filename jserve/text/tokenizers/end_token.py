"""The token that a model's tokenizer names as the end of a text: it ends an answer, whatever `config.json` says.

Read from the tokenizer's files alone, without building it: the engine wants one number of them.
"""

from pathlib import Path

from jserve.checkpoint.json_file import read_json
from jserve.errors import CheckpointError
from jserve.text.tokenizers.huggingface import load_huggingface_tokenizer, read_tokenizer_config, special_token_texts


def end_token_ids(directory: Path) -> frozenset[int]:
    """The id of `eos_token` of a Hugging Face directory; none where its files name no such token.

    Raises CheckpointError where a file is damaged.
    """
    config = read_tokenizer_config(directory)
    token = special_token_texts(config).get("eos_token")
    if token is None:
        return frozenset()
    added = config.get("added_tokens_decoder") or {}
    ids = [int(number) for number, entry in added.items() if entry.get("content") == token]
    if not ids and (directory / "tokenizer.json").exists():
        ids = _ids_of_file(directory / "tokenizer.json", token)
    elif not ids:
        loaded = load_huggingface_tokenizer(directory).eos_token_id
        ids = [] if loaded is None else [loaded]
    return frozenset(ids)


def _ids_of_file(file: Path, token: str) -> list[int]:
    raw = read_json(file)
    try:
        added = [entry["id"] for entry in raw.get("added_tokens") or () if entry["content"] == token]
        vocabulary = (raw.get("model") or {}).get("vocab")
    except (TypeError, KeyError, AttributeError):
        raise CheckpointError(
            f"{file} is damaged or not a tokenizer: its added_tokens need an id and a content"
        ) from None
    known = vocabulary.get(token) if isinstance(vocabulary, dict) else None
    ids = added or ([] if known is None else [known])
    return [number for number in ids if type(number) is int]
