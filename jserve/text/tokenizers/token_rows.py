"""Whether a model has a row in its embedding table for every token that a request brings.

Tokens of the tokenizer and rows of the table are two numbers: a tokenizer may have more tokens than the model has rows
(Gemma 3's has one for images that its text models lack). The device would read another row for such a token, so every
prompt passes here, however it became tokens.
"""

from collections.abc import Iterable, Sequence

from jserve.errors import FieldPath, RequestError
from jserve.protocol import SamplingParams
from jserve.text.tokenizers.tokenizer import Tokenizer


def check_prompt_tokens(token_ids: Sequence[int], num_rows: int, tokenizer: Tokenizer) -> None:
    """Raise RequestError that names the first token of a prompt for which the model has no row."""
    token = _without_row(token_ids, num_rows)
    if token is not None:
        raise RequestError(f"the prompt holds {_described(token, num_rows, tokenizer)}; leave it out")


def check_named_tokens(params: SamplingParams, num_rows: int, tokenizer: Tokenizer) -> None:
    """Raise RequestError that names a token of the parameters for which the model has no row, and the parameter."""
    budget = params.thinking_budget
    named: dict[str, Iterable[int]] = {
        "logit_bias": params.logit_bias or {},
        "stop_token_ids": params.stop_token_ids,
        "allowed_token_ids": params.allowed_token_ids,
        "logprob_token_ids": params.logprob_token_ids,
        "bad_words": [token for word in params.bad_words for token in word],
        "thinking_token_budget": (*budget.begin, *budget.end) if budget is not None else (),
    }
    for param, token_ids in named.items():
        token = _without_row(list(token_ids), num_rows)
        if token is not None:
            needed = f" needs {_described(token, num_rows, tokenizer)}; leave it out"
            raise RequestError(FieldPath(param), needed, param=param)


def _without_row(token_ids: Sequence[int], num_rows: int) -> int | None:
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < num_rows):
        return None
    return next(token for token in token_ids if not 0 <= token < num_rows)


def _described(token: int, num_rows: int, tokenizer: Tokenizer) -> str:
    text = tokenizer.token_string(token) if token >= 0 else None
    spelled = f" ({text!r})" if text is not None else ""
    return f"token id {token}{spelled}, which is out of vocabulary: the model has rows for 0 to {num_rows - 1}"
