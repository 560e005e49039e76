"""What endpoints share that make a chat request of their own body: fields under other names, and errors about them."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from jserve.api.openai.bodies import ChatBody
from jserve.errors import RequestError

_SAME_EVERYWHERE = frozenset({
    "min_tokens", "min_p", "top_k", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "logit_bias", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens",
    "truncate_prompt_tokens", "truncation_side", "priority", "request_id", "cache_salt", "chat_template_kwargs",
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object",
    "guided_whitespace_pattern", "allowed_token_ids", "bad_words", "thinking_token_budget", "include_reasoning",
    "documents", "n", "stream_interval", "spaces_between_special_tokens", "session_id",
})  # fmt: skip
"""Fields of chat, beyond those of OpenAI's and Anthropic's other endpoints, that mean the same there."""


def extra_chat_fields(extra: Mapping[str, Any], endpoint: str) -> dict[str, Any]:
    """The fields of chat among the unknown ones of another endpoint's body.

    Raises RequestError for a field of chat that the endpoint cannot honour. What chat does not know either is
    passed on, so that chat refuses what it refuses.
    """
    for name, value in extra.items():
        field = ChatBody.model_fields.get(name)
        if field is not None and name not in _SAME_EVERYWHERE and value not in (None, field.default):
            raise RequestError(f"`{name}` is a field of chat completions, not of {endpoint}", param=name)
        if name == "n" and value not in (None, 1):
            raise RequestError(f"{endpoint} gives one answer: n must be 1, got {value!r}", param="n")
    passed = extra.keys() - (ChatBody.model_fields.keys() - _SAME_EVERYWHERE)
    return {name: extra[name] for name in extra if name in passed}


@contextmanager
def errors_naming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a field of chat name what the client wrote: `names` maps the one to the other.

    A name in prose ("these messages") stays as it is; only the field's own name, as a word, is replaced. Names
    that begin with a bracket are of what lies in a list ("].function.name"), and are replaced wherever they stand.
    """
    try:
        yield
    except RequestError as error:
        message, param = str(error), error.param
        if param is None:
            raise
        field = re.split(r"\W", param, maxsplit=1)[0]
        theirs = names.get(field, field)
        if field != "messages":
            message = re.sub(rf"(?<![\w.]){field}(?!\w)", theirs, message)
        param = theirs + param.removeprefix(field)
        for inner in (name for name in names if name.startswith("]")):
            message, param = message.replace(inner, names[inner]), param.replace(inner, names[inner])
        raise type(error)(message, param=param) from None


def chat_body(fields: Mapping[str, Any], names: Mapping[str, str]) -> ChatBody:
    """`fields` as a ChatBody. Raises RequestError, naming what the client wrote, where a value does not fit."""
    try:
        return ChatBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field, *rest = (str(part) for part in first["loc"])
        where = ".".join([names.get(field, field), *rest])
        raise RequestError(f"{where}: {first['msg']}", param=where) from None
