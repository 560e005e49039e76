"""Messages as clients write them, made into what chat templates expect.

Templates follow Hugging Face's conventions, clients OpenAI's: `developer` is a system message, absent fields
are left out rather than null, the arguments of tool calls are objects and not JSON in a string.

What a model or a tool wrote earlier is rendered, not validated: a call that a token limit has cut off must not end
the conversation that it is part of. What the user sends and a model for text cannot read is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from jserve.errors import RequestError

Message = Mapping[str, Any]

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_RESULT_ROLES = ("tool", "function")
_MAX_KIND = 60
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning. Templates read the first; gpt-oss reads the second."""


@dataclass(frozen=True, slots=True)
class MessageForm:
    """What a template can do with messages. `takes_none`: a call without content may have None there.

    `takes_strings`, `takes_lists`: contents as a text, as parts. `arguments_as_text`: of calls, as JSON in a string.
    """

    keeps_developer: bool
    takes_lists: bool
    takes_strings: bool
    takes_none: bool = False
    arguments_as_text: bool = False


def normalize_messages(messages: Sequence[Message], form: MessageForm) -> list[dict[str, Any]]:
    """Fresh messages of the form that a template takes.

    Raises RequestError, naming the message, where one cannot be made into text.
    """
    if not messages:
        raise RequestError("messages is empty; a conversation needs at least one message", param="messages")
    normalized = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise RequestError(f"{where}.role must be a role, such as 'user'", param=f"{where}.role")
        fresh = {key: value for key, value in message.items() if value is not None and value != []}
        if fresh.get("role") == "developer" and not form.keeps_developer:
            fresh["role"] = "system"
        fresh["content"] = _content(message, where, form.takes_lists, form.takes_strings)
        if "tool_calls" in fresh:
            calls = message_calls(message, where)
            fresh["tool_calls"] = [_with_arguments(call, form.arguments_as_text) for call in calls]
            if form.takes_none and not message.get("content"):
                fresh["content"] = None
        normalized.append(_with_reasoning(fresh))
    return normalized


def message_calls(message: Message, where: str) -> list[dict[str, Any]]:
    """The calls of a message of the history. Both {"function": {...}} and the bare function are in use.

    A call of a custom tool, whose input is text, becomes that of a function with one parameter.
    Raises RequestError, naming the call, where one says no tool.
    """
    calls = message.get("tool_calls")
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise RequestError(f"{where}.tool_calls must be a list of calls", param=f"{where}.tool_calls")
    return [_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)]


def left_out_note(kind: str) -> str:
    """What stands in a tool's result for a part that is no text: neither the client nor the tool can change it."""
    return f"[{kind[:_MAX_KIND]} left out: this model takes text only]"


def called_arguments(text: str) -> dict[str, Any]:
    """The arguments of a call in the history, from their JSON. Of a call that was cut off, what is complete.

    What is no object stands under "arguments", so that a template finds an object in any case.
    """
    try:
        parsed = from_json(text.strip() or "{}", allow_partial="trailing-strings")
    except ValueError:
        parsed = text
    if parsed is None:
        return {}
    return parsed if isinstance(parsed, dict) else {"arguments": parsed}


def _content(message: Message, where: str, takes_lists: bool, takes_strings: bool) -> Any:
    content = message.get("content")
    if content is None:
        content = ""
    if isinstance(content, str):
        return content if takes_strings else [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be a string or a list of parts", param=f"{where}.content")
    role = message["role"]
    parts = [part_text(part, role, f"{where}.content[{number}]") for number, part in enumerate(content)]
    texts = [text for text in parts if text is not None]
    if takes_lists:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def part_text(part: Any, role: str, where: str) -> str | None:
    """The text of a part; None where it has none and is left out."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
    if isinstance(kind, str) and isinstance(text, str):
        return text
    if isinstance(kind, str) and kind not in _TEXT_PARTS and role in _RESULT_ROLES:
        return left_out_note(kind)
    if isinstance(kind, str) and kind not in _TEXT_PARTS and role == "assistant":
        return None
    raise RequestError(
        f"{where} has type {kind!r} but this model takes text only: parts of type 'text' with a text",
        param=where,
    )


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RequestError(f"{where} must be an object", param=where)
    kept: dict[str, Any] = {key: value for key, value in call.items() if value is not None}
    if "function" not in kept and isinstance(custom := kept.get("custom"), dict):
        del kept["custom"]
        kept["type"] = "function"
        kept["function"] = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
    function = kept.get("function", kept)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} must have a `function` with the name of the tool that was called", param=where)
    return kept


def _with_arguments(call: dict[str, Any], as_text: bool) -> dict[str, Any]:
    """A copy with its arguments parsed, or as JSON."""
    if "function" in call:
        return {**call, "function": _with_arguments(call["function"], as_text)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)} if as_text and arguments else dict(call)
    return {**call, "arguments": (arguments.strip() or "{}") if as_text else called_arguments(arguments)}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    fresh = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    if fresh.get("tool_calls") and fresh.get("content"):
        del fresh["thinking"]  # gpt-oss refuses a call with both, and takes the content for the thought.
    return fresh
