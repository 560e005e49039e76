"""`allowed_token_ids` and `bad_words`, checked and as token ids."""

from jserve.api.errors import invalid
from jserve.constrain.bits import fixed_tokens, is_empty
from jserve.errors import RequestError
from jserve.protocol import SamplingParams
from jserve.text.tokenizers.tokenizer import Tokenizer


def allowed_tokens(raw: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    """`allowed_token_ids`; () allows everything. Raises RequestError for an empty list or an unknown id."""
    if raw is None:
        return ()
    if not raw:
        raise RequestError(
            "allowed_token_ids must not be empty; leave it out to allow every token.", param="allowed_token_ids"
        )
    for token in raw:
        if not 0 <= token < vocab_size:
            raise invalid(
                f"allowed_token_ids contains token id {token}, which is out of vocabulary (0 to {vocab_size - 1}).",
                param="allowed_token_ids",
                value=token,
            )
    return tuple(dict.fromkeys(raw))


def bad_word_tokens(raw: list[str] | None, tokenizer: Tokenizer, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Each word as it begins a text and as it follows a space, which are other tokens.

    A spelling with a token that the model has no row for cannot be generated, and is left out. Raises RequestError for
    a word without characters.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in raw or ():
        stem = word.lstrip()
        spellings = [
            tuple(tokenizer.encode(text, add_special_tokens=False))
            for text in ((stem, " " + stem) if stem else (word,))
        ]
        if not word or not all(spellings):
            raise RequestError(f"bad_words contains {word!r}, which has no tokens.", param="bad_words")
        sequences.update(dict.fromkeys(tokens for tokens in spellings if max(tokens) < vocab_size))
    return tuple(sequences)


def check_something_is_allowed(params: SamplingParams, vocab_size: int) -> None:
    """Raise RequestError where `bad_words` forbids every token that `allowed_token_ids` allows."""
    if (params.allowed_token_ids or params.bad_words) and is_empty(fixed_tokens(params, vocab_size), vocab_size):
        raise RequestError("bad_words forbids every token of allowed_token_ids; relax one of them.", param="bad_words")
