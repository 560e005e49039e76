"""A request's sampling fields, checked and turned into `SamplingParams`.

Messages follow vLLM's, which clients already parse. Length rules that need the prompt are in `lengths.py`.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

from jserve.api.errors import invalid
from jserve.api.model.defaults import SamplingDefaults
from jserve.api.openai.bodies import GenerationBody, RepetitionDetectionBody
from jserve.api.openai.forbidden import allowed_tokens, bad_word_tokens, check_something_is_allowed
from jserve.errors import FieldPath, RequestError
from jserve.protocol import MAX_CHOSEN, MAX_LOGPROBS, RepetitionDetection, SamplingParams
from jserve.text.tokenizers.tokenizer import Tokenizer

MAX_CHOICES = 2048
"""Most choices of one request. To hand over more would hold up everybody else noticeably."""

_T = TypeVar("_T")


def sampling_params(
    body: GenerationBody,
    defaults: SamplingDefaults,
    *,
    vocab_size: int,
    tokenizer: Tokenizer,
    max_tokens: int | None,
    logprobs: int | None,
) -> SamplingParams:
    """The sampling of `body`. `max_tokens` and `logprobs` are as the endpoint understood them.

    Raises RequestError naming the field, its value and its range.
    """
    params = SamplingParams(
        n=1 if body.n is None else body.n,
        max_tokens=_first(max_tokens, defaults.max_tokens),
        min_tokens=body.min_tokens or 0,
        temperature=_first(body.temperature, defaults.temperature),
        top_p=_first(body.top_p, defaults.top_p),
        top_k=_first(body.top_k, defaults.top_k),
        min_p=_first(body.min_p, defaults.min_p),
        seed=None if body.seed == -1 else _first(body.seed, defaults.seed),
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty),
        frequency_penalty=_first(body.frequency_penalty, defaults.frequency_penalty),
        presence_penalty=_first(body.presence_penalty, defaults.presence_penalty),
        logit_bias=_logit_bias(body.logit_bias, vocab_size),
        stop=defaults.stop if body.stop is None else _stop_strings(body.stop),
        stop_token_ids=_stop_token_ids(body.stop_token_ids, vocab_size),
        include_stop_str_in_output=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=_prompt_logprobs(body),
        logprob_token_ids=_logprob_token_ids(body, vocab_size, logprobs),
        allowed_token_ids=allowed_tokens(body.allowed_token_ids, vocab_size),
        bad_words=bad_word_tokens(body.bad_words, tokenizer, vocab_size),
        repetition_detection=_repetition_detection(body.repetition_detection),
        penalty_window=body.dialect.penalty_window,
    )
    if body.dialect.has_ranges:
        _check_ranges(params)
    _check_counts(params)
    check_something_is_allowed(params, vocab_size)
    return params


def check_logprobs(value: int, *, param: str, kind: str = "sample") -> None:
    """Raise RequestError where `value` alternatives per token are more than the engine returns."""
    if value == -1:
        raise invalid(
            f"`{param}` of -1, the whole vocabulary, is not supported; ask for at most {MAX_LOGPROBS}.",
            param=param,
            value=value,
        )
    if value < 0:
        raise invalid(f"`{param}` must be non-negative, got {value}.", param=param, value=value)
    if value > MAX_LOGPROBS:
        raise invalid(
            f"Requested {kind} logprobs of {value}, which is greater than max allowed: {MAX_LOGPROBS}",
            param=param,
            value=value,
        )


def _check_ranges(params: SamplingParams) -> None:
    _in_range("temperature", params.temperature, 0.0, 2.0)
    _in_range("min_p", params.min_p, 0.0, 1.0)
    _in_range("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    _in_range("presence_penalty", params.presence_penalty, -2.0, 2.0)
    _in_range("top_p", params.top_p, 0.0, 1.0)
    if params.top_k < -1:
        raise invalid(
            f"top_k must be 0 (disable), or at least 1, got {params.top_k}.", param="top_k", value=params.top_k
        )
    penalty = params.repetition_penalty
    if not (penalty > 0.0 and math.isfinite(penalty)):
        raise invalid(
            f"repetition_penalty must be greater than zero, got {penalty}.", param="repetition_penalty", value=penalty
        )


def _check_counts(params: SamplingParams) -> None:
    n, max_tokens, min_tokens = params.n, params.max_tokens, params.min_tokens
    if n < 1:
        raise invalid(f"n must be at least 1, got {n}.", param="n", value=n)
    if n > MAX_CHOICES:
        raise invalid(f"n must be at most {MAX_CHOICES}, got {n}.", param="n", value=n)
    if min_tokens < 0:
        raise invalid(
            f"min_tokens must be greater than or equal to 0, got {min_tokens}.", param="min_tokens", value=min_tokens
        )
    if max_tokens is not None and min_tokens > max_tokens:
        raise invalid(
            "min_tokens must be less than or equal to ",
            FieldPath("max_tokens"),
            f"={max_tokens}, got {min_tokens}.",
            param="min_tokens",
            value=min_tokens,
        )


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # A NaN is out of every range.
        raise invalid(f"{name} must be in [{low:g}, {high:g}], got {value}.", param=name, value=value)


def _prompt_logprobs(body: GenerationBody) -> int | None:
    count = body.prompt_logprobs
    if count is None:
        return None
    if body.stream:
        raise invalid("`prompt_logprobs` are not available when `stream=True`.", param="prompt_logprobs", value=count)
    check_logprobs(count, param="prompt_logprobs", kind="prompt")
    return count


def _logprob_token_ids(body: GenerationBody, vocab_size: int, logprobs: int | None) -> tuple[int, ...]:
    tokens = tuple(body.logprob_token_ids or ())
    if tokens and logprobs is None:
        raise RequestError("when using `logprob_token_ids`, `logprobs` must be set.", param="logprob_token_ids")
    if len(tokens) > MAX_CHOSEN:
        raise RequestError(
            f"logprob_token_ids holds {len(tokens)} tokens but at most {MAX_CHOSEN} are allowed",
            param="logprob_token_ids",
        )
    for token in tokens:
        _check_token("logprob_token_ids", token, vocab_size)
    return tokens


def _first(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _logit_bias(raw: Mapping[str, float] | None, vocab_size: int) -> dict[int, float] | None:
    if not raw:
        return None
    bias: dict[int, float] = {}
    for key, value in raw.items():
        try:
            token = int(key)
        except ValueError:
            message = f"Found invalid key in logit_bias: {key!r}; keys must be token ids"
            raise RequestError(message, param="logit_bias") from None
        _check_token("logit_bias", token, vocab_size)
        if not math.isfinite(value):
            raise RequestError(f"logit_bias of token {token} must be finite, got {value}.", param="logit_bias")
        bias[token] = min(100.0, max(-100.0, value))
    return bias


def _repetition_detection(raw: RepetitionDetectionBody | None) -> RepetitionDetection | None:
    if raw is None or not raw.max_pattern_size:
        return None
    if raw.min_pattern_size > raw.max_pattern_size:
        raise RequestError(
            f"repetition_detection.min_pattern_size is {raw.min_pattern_size} but must be at most "
            f"max_pattern_size={raw.max_pattern_size}.",
            param="repetition_detection",
        )
    if raw.min_count < 2:
        raise RequestError(
            f"repetition_detection.min_count is {raw.min_count} but must be at least 2: a pattern that came once "
            "repeats nothing.",
            param="repetition_detection",
        )
    return RepetitionDetection(raw.max_pattern_size, max(raw.min_pattern_size, 1), raw.min_count)


def _stop_strings(raw: str | list[str] | None) -> tuple[str, ...]:
    stops = () if raw is None else (raw,) if isinstance(raw, str) else tuple(raw)
    if "" in stops:
        raise RequestError(FieldPath("stop"), " cannot contain an empty string.", param="stop")
    return stops


def _stop_token_ids(raw: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    for token in raw or ():
        _check_token("stop_token_ids", token, vocab_size)
    return tuple(raw or ())


def _check_token(param: str, token: int, vocab_size: int) -> None:
    if not 0 <= token < vocab_size:
        raise RequestError(
            f"{param} contains token id {token}, which is out of vocabulary (0 to {vocab_size - 1}).",
            param=param,
        )
