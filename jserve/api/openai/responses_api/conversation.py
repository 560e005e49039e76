"""The input of the Responses API as the messages of a chat.

A turn of the assistant is several items there (reasoning, message, function calls) and one message here.
Errors name the item: `input[3].content[0]`. Items of tools that this server does not have are read for their text.
"""

import json
from collections.abc import Sequence
from typing import Any

from jserve.api.openai.left_out import log_left_out
from jserve.api.openai.responses_api.tools import OfferedTools
from jserve.errors import RequestError
from jserve.text.templates.messages import left_out_note

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
_ROLES = ("user", "assistant", "system", "developer")


def messages_of(
    items: str | Sequence[dict[str, Any]],
    instructions: str | None,
    offered: OfferedTools,
    earlier: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The messages of a chat. `instructions` come first, joined with system messages that the input begins with, then
    what was said `earlier`.

    Calls of functions stand under the names by which the model knows what is `offered`. Raises RequestError for an
    item that cannot be made into text.
    """
    conversation = _Conversation()
    if instructions:
        conversation.add_message("system", instructions)
    for number, item in enumerate(earlier):
        _add_item(conversation, item, f"previous_response_id: item {number}", offered, [])
    if isinstance(items, str):
        conversation.add_message("user", items)
        return conversation.messages
    if not items:
        raise RequestError("input is an empty list; it needs at least one item", param="input")
    left_out: list[str] = []
    for number, item in enumerate(items):
        _add_item(conversation, item, f"input[{number}]", offered, left_out)
    log_left_out("items", left_out)
    if not conversation.messages:
        raise RequestError("input holds no item with text; it needs at least one message", param="input")
    return conversation.messages


class _Conversation:
    """Messages as they come together from items."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}

    def add_message(self, role: str, text: str) -> None:
        last = self.messages[-1] if self.messages else None
        if role == "assistant":
            turn = self._assistant(with_space_for="content")
            turn["content"] = text
        elif len(self.messages) == 1 and last and last["role"] == "system" and role in ("system", "developer"):
            # Many templates take a single system message, at the very beginning.
            last["content"] = f"{last['content']}\n\n{text}"
        else:
            self.messages.append({"role": role, "content": text})

    def add_reasoning(self, text: str) -> None:
        if text:
            self._assistant(with_space_for="reasoning_content")["reasoning_content"] = text

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        self._names[call_id] = name
        calls = self._assistant().setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})

    def has_call(self, call_id: str) -> bool:
        """Whether this call was made."""
        return call_id in self._names

    def add_call_output(self, call_id: str, text: str) -> None:
        message = {"role": "tool", "tool_call_id": call_id, "content": text}
        if call_id in self._names:
            message["name"] = self._names[call_id]
        self.messages.append(message)

    def _assistant(self, *, with_space_for: str | None = None) -> dict[str, Any]:
        """The assistant's message that is being put together, or a new one where `with_space_for` is past."""
        order = ("reasoning_content", "content", "tool_calls")
        last = self.messages[-1] if self.messages else {"role": ""}
        later = order[order.index(with_space_for) :] if with_space_for else ()
        if last["role"] != "assistant" or any(last.get(name) is not None for name in later):
            last = {"role": "assistant", "content": None}
            self.messages.append(last)
        return last


def _add_item(
    conversation: _Conversation, item: dict[str, Any], where: str, offered: OfferedTools, left_out: list[str]
) -> None:
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if role not in _ROLES:
                raise RequestError(f"{where}.role is {role!r} but must be one of {', '.join(_ROLES)}", param=where)
            conversation.add_message(role, _text(item.get("content"), role, f"{where}.content"))
        case "function_call":
            call_id, name, arguments = (_string(item, key, where) for key in ("call_id", "name", "arguments"))
            namespace = item.get("namespace")
            name = offered.name_for_model(name, namespace if isinstance(namespace, str) else "")
            conversation.add_call(call_id, name, arguments)
        case "function_call_output":
            output = _text(item.get("output"), "tool", f"{where}.output")
            conversation.add_call_output(_string(item, "call_id", where), output)
        case "reasoning":
            parts = item.get("content") or item.get("summary") or []
            conversation.add_reasoning("\n".join(_reasoning_text(part, where) for part in _list(parts, where)))
        case str(kind):
            if not _add_other(conversation, kind, item):
                left_out.append(kind)
        case kind:
            raise RequestError(f"{where}.type is {kind!r:.60} but must be a string", param=where)


def _add_other(conversation: _Conversation, kind: str, item: dict[str, Any]) -> bool:
    """Add an item of a tool that this server does not have, as the call of a function; False where it has no text.

    Calls that the client ran (of a shell, a patch, a custom tool) come with a result of their own. Calls that a
    service ran hold theirs, and those that hold none are left out.
    """
    call_id = item.get("call_id")
    if kind.endswith("_output"):
        call_id = call_id or item.get("id")
        if not isinstance(call_id, str) or not conversation.has_call(call_id):
            return False
        conversation.add_call_output(call_id, _text_of_output(item.get("output")))
        return True
    if kind.endswith("_call"):
        results = [text for name in _RESULTS for text in texts_in(item.get(name))]
        if not isinstance(call_id, str):
            call_id = item.get("id") if results else None
        if isinstance(call_id, str):
            name = item.get("name")
            conversation.add_call(call_id, name if isinstance(name, str) else kind[:-5], _arguments(item))
            if results:
                conversation.add_call_output(call_id, "\n".join(results))
        return isinstance(call_id, str)
    texts = texts_in(item.get("content") or item.get("text") or item.get("summary"))
    role = item.get("role")
    if texts:
        conversation.add_message(role if role in _ROLES else "assistant", "\n".join(texts))
    return bool(texts)


_RESULTS = ("output", "outputs", "results", "error")
"""Where the item of a call that a service ran holds what came of it."""


def _arguments(item: dict[str, Any]) -> str:
    """What a call was given, as the JSON of a function's arguments."""
    arguments = item.get("arguments")
    if isinstance(arguments, str):
        return arguments
    names = ("arguments", "input", "action", "operation", "code", "queries")
    name = next((name for name in names if item.get(name) is not None), "")
    value = item.get(name)
    return json.dumps(value if isinstance(value, dict) else {name: value} if name else {}, ensure_ascii=False)


def _text_of_output(output: Any) -> str:
    text = "\n".join(texts_in(output))
    kind = output.get("type") if isinstance(output, dict) else None
    return left_out_note(kind) if not text and isinstance(kind, str) else text


def texts_in(value: Any) -> list[str]:
    """The texts in parts of a kind that is not known: strings, and what stands under a name that holds text."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list):
        return [text for entry in value for text in texts_in(entry)]
    if isinstance(value, dict):
        return [text for name in _TEXTS if isinstance(value.get(name), str | list) for text in texts_in(value[name])]
    return []


_TEXTS = ("text", "content", "logs", "stdout", "stderr", "message")


def _text(content: Any, role: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of parts", param=where)
    texts = (_part_text(part, role, f"{where}[{number}]") for number, part in enumerate(content))
    return "\n".join(text for text in texts if text is not None)


def _part_text(part: Any, role: str, where: str) -> str | None:
    """The text of a part; None for one of the assistant's that has none and is left out."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(kind, str) else None
    if isinstance(text, str):
        return text
    if isinstance(kind, str) and kind not in _TEXT_PARTS and role == "tool":
        return left_out_note(kind)
    if isinstance(kind, str) and kind not in _TEXT_PARTS and role == "assistant":
        return None
    raise RequestError(
        f"{where} has type {kind!r} but this model takes text only: parts of type 'input_text' or 'output_text' "
        "with a text",
        param=where,
    )


def _reasoning_text(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise RequestError(f"{where} must hold parts with a text", param=where)
    return text


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"{where}: content and summary of reasoning must be lists", param=where)
    return value


def _string(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{name} must be a string", param=f"{where}.{name}")
    return value
