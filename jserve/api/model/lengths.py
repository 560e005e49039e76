"""How long a prompt and its answer may be. The texts are vLLM's, which clients match on."""

from jserve.api.errors import invalid
from jserve.errors import ContextLengthError, FieldPath, RequestError


def check_prompt_length(num_tokens: int, max_model_len: int, *, at_least: bool = False, generates: bool = True) -> None:
    """Raise RequestError where the prompt leaves no room for one token, or does not fit where none `generates`.

    `at_least` says that the count is a lower bound, made before tokenizing.
    """
    if num_tokens < 1:
        raise RequestError("The decoder prompt cannot be empty", param="prompt")
    start = f"This model's maximum context length is {max_model_len} tokens. However, "
    if num_tokens > max_model_len:
        bound = "at least " if at_least else ""
        raise ContextLengthError(
            f"{start}your prompt contains {bound}{num_tokens} input tokens, which exceeds this limit even "
            "without any output tokens. Please reduce the length of the input prompt.",
            param="input_text" if at_least else "input_tokens",
        )
    if num_tokens == max_model_len and generates:
        raise ContextLengthError(
            f"{start}your prompt contains {num_tokens} input tokens, which plus the number of requested "
            "output tokens (at least 1) is longer than the maximum model length. "
            "Please reduce the length of the input prompt.",
            param="input_tokens",
        )


def check_max_tokens(value: int | None, *, param: str, least: int = 1) -> None:
    """Raise RequestError where the request asks for fewer tokens than `least`.

    More than the context holds is no error: it is cut to what the prompt leaves of it, as is less than that.
    """
    if value is not None and value < least:
        raise invalid(FieldPath(param), f" must be at least {least}, got {value}.", param=param, value=value)


def clamp_max_tokens(requested: int | None, num_prompt: int, max_model_len: int, cap: int | None) -> int:
    """Tokens that may be generated: what the request wants, what the context leaves, and the model's own cap."""
    if requested == 0:
        return 0
    limits = (requested, max_model_len - num_prompt, cap)
    return max(1, min(limit for limit in limits if limit is not None))


def truncate_prompt(
    token_ids: list[int],
    limit: int | None,
    side: str | None,
    max_model_len: int,
    *,
    generates: bool = True,
    special_ends: tuple[int, int] = (0, 0),
) -> list[int]:
    """Keep at most `limit` tokens (-1: as many as the context allows, with one to generate where it `generates`).

    `side` names the end that is cut, by default the left, so that the newest text stays. So do as many tokens of
    either end as `special_ends` says, where there is room for more.
    """
    if limit is None:
        return token_ids
    if limit > max_model_len:
        raise invalid(
            f"truncate_prompt_tokens value is greater than max_model_len ({max_model_len}). "
            "Please request a smaller truncation size.",
            param="truncate_prompt_tokens",
            value=limit,
        )
    keep = max_model_len - generates if limit == -1 else limit
    if keep == 0:
        return []
    before, after = special_ends if keep > sum(special_ends) else (0, 0)
    text, room = token_ids[before : len(token_ids) - after], keep - before - after
    kept = text[:room] if side == "right" else text[-room:]
    return token_ids[:before] + kept + token_ids[len(token_ids) - after :]
