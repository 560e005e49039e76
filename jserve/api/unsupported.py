"""Fields that would change the output and that jserve does not implement yet.

They are refused by name: ignoring one would answer with text that the caller did not ask for. A field that
is absent, null, or at the value that changes nothing, is accepted.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jserve.errors import RequestError

_Harmless = Callable[[Any], bool]


def _is_text_format(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value.get("type") == "text")


def _never(value: Any) -> bool:
    return False


def _is_falsy(value: Any) -> bool:
    return not value


def _is_text_only(value: Any) -> bool:
    return bool(value == ["text"])


_BOTH: dict[str, _Harmless] = {
    "response_format": _is_text_format,
    "structured_outputs": _never,
    "guided_json": _never,
    "guided_regex": _never,
    "guided_choice": _never,
    "guided_grammar": _never,
    "guided_json_object": _is_falsy,
    "prompt_logprobs": _never,
    "logprob_token_ids": _never,
    "allowed_token_ids": _never,
    "bad_words": _is_falsy,
    "use_beam_search": _is_falsy,
    "best_of": lambda value: value == 1,
    "length_penalty": lambda value: value == 1.0,
    "repetition_detection": _never,
    "thinking_token_budget": lambda value: value == -1,
    "watermarking": _is_falsy,
    "logits_processors": _is_falsy,
    "vllm_xargs": _is_falsy,
    "kv_transfer_params": _is_falsy,
    "spaces_between_special_tokens": lambda value: value is True,
}
_CHAT: dict[str, _Harmless] = {
    "tools": _never,
    "tool_choice": lambda value: value == "none",
    "functions": _is_falsy,
    "function_call": lambda value: value == "none",
    "audio": _never,
    "modalities": _is_text_only,
    "web_search_options": _never,
    "mm_processor_kwargs": _is_falsy,
    "media_io_kwargs": _is_falsy,
}
_COMPLETION: dict[str, _Harmless] = {"prompt_embeds": _never}


def refuse_unsupported_chat_fields(extra: Mapping[str, Any]) -> None:
    """Raise RequestError for the first field of `extra` that chat does not implement."""
    if extra.get("tools") == []:
        raise RequestError("`tools` must not be an empty list; leave it out to use none", param="tools")
    if extra.get("tool_choice") not in (None, "none") and extra.get("tools") is None:
        raise RequestError("When using `tool_choice`, `tools` must be set.", param="tool_choice")
    _refuse(extra, _BOTH | _CHAT)


def refuse_unsupported_completion_fields(extra: Mapping[str, Any]) -> None:
    """Raise RequestError for the first field of `extra` that completions do not implement."""
    if extra.get("suffix"):
        raise RequestError("suffix is only supported for models with FIM completion rendering", param="suffix")
    _refuse(extra, _BOTH | _COMPLETION)


def _refuse(extra: Mapping[str, Any], fields: Mapping[str, _Harmless]) -> None:
    for name, value in extra.items():
        is_harmless = fields.get(name)
        if value is not None and is_harmless is not None and not is_harmless(value):
            raise RequestError(
                f"`{name}` is not supported yet; leave it out. (It would change the output, so it is not ignored.)",
                param=name,
            )
