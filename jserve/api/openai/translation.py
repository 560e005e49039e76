"""What endpoints share that make a chat request of their own body: fields under other names, and errors about them."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a field of chat name what the client wrote. `names` maps paths of chat's fields to the client's."""
    try:
        yield
    except RequestError as error:
        raise error.renamed(partial(client_path, names=names)) from None


def client_path(path: str, names: Mapping[str, str]) -> str:
    """A field of chat, such as `tools[0].function.name`, by the path at which the client wrote it.

    `names` maps paths, with `[]` for any index, or an index itself. The longest one that `path` is, or lies in, counts;
    where there is none, the field has the same path everywhere. Indices may also be written as pydantic does
    (`tools.0.function`).
    """
    for ours in sorted(names, key=len, reverse=True):
        pattern = re.escape(ours).replace(r"\[\]", r"(\[\d+\]|\.\d+)")
        pattern = re.sub(r"\\\[(\d+)\\\]", r"(?:\\[\1\\]|\\.\1)", pattern)
        if match := re.match(rf"{pattern}(?![^.\[])", path):
            theirs = names[ours]
            for index in match.groups():
                theirs = theirs.replace("[]", index, 1)
            return theirs + path[match.end() :]
    return path


def chat_body(fields: Mapping[str, Any], names: Mapping[str, str]) -> ChatBody:
    """`fields` as a ChatBody. Raises RequestError, naming what the client wrote, where a value does not fit."""
    try:
        return ChatBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = client_path(".".join(str(part) for part in first["loc"]), names)
        raise RequestError(f"{where}: {first['msg']}", param=where) from None
