"""Ollama's messages, made into OpenAI's, which chat takes.

In Ollama a tool's answer names the tool (`tool_name`) where OpenAI's names the call (`tool_call_id`); templates
may want either, so calls without an id are given one, and answers find theirs by name and order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jserve.api.ollama.open_calls import OpenCalls
from jserve.errors import RequestError
from jserve.text.templates.messages import called_arguments, left_out_note

_ID = "call{:05d}"
"""Nine letters and digits, since Mistral's templates refuse others."""


def to_openai(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fresh messages. Raises RequestError, naming the message, where one is malformed or holds images."""
    made: list[dict[str, Any]] = []
    open_calls = OpenCalls()
    serial = 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise RequestError(f"{where}.role is missing; it is one of system, user, assistant, tool", param=where)
        if message.get("images") and role.lower() != "tool":
            raise RequestError(f"{where}.images: this model takes text only; leave them out", param=f"{where}.images")
        fresh = {name: value for name, value in message.items() if name not in ("images", "tool_calls", "tool_name")}
        fresh["role"] = role.lower()
        calls = _calls(message.get("tool_calls"), f"{where}.tool_calls")
        for call in calls:
            call["id"] = call.get("id") or _ID.format(serial)
            serial += 1
            open_calls.add(call["id"], call["function"]["name"])
        if calls:
            fresh["tool_calls"] = calls
        if fresh["role"] == "tool":
            fresh |= _answered(message, open_calls)
        if message.get("images"):
            fresh["content"] = f"{message.get('content') or ''}\n{left_out_note('image')}".lstrip()
        made.append(fresh)
    return made


def _calls(raw: Any, where: str) -> list[dict[str, Any]]:
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise RequestError(f"{where} must be an array", param=where)
    return [_call(call, f"{where}[{number}]") for number, call in enumerate(raw)]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} must have a function with a name", param=where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # As other APIs write them, and perhaps cut off.
        arguments = called_arguments(arguments)
    if arguments is not None and not isinstance(arguments, dict):
        raise RequestError(f"{where}.function.arguments must be an object", param=f"{where}.function.arguments")
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _answered(message: Mapping[str, Any], open_calls: OpenCalls) -> dict[str, str]:
    """Name and id of the call that a tool's message answers."""
    call_id, name = (_string(message, *names) for names in (("tool_call_id",), ("tool_name", "name")))
    call_id, name = open_calls.close(call_id, name)
    return {key: value for key, value in (("name", name), ("tool_call_id", call_id)) if value}


def _string(message: Mapping[str, Any], *names: str) -> str | None:
    return next((message[name] for name in names if isinstance(message.get(name), str)), None)
