"""The input of the Responses API as the messages of a chat.

A turn of the assistant is several items there (reasoning, message, function calls) and one message here.
Errors name the item: `input[3].content[0]`.
"""

from collections.abc import Sequence
from typing import Any

from jserve.errors import RequestError

_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_ROLES = ("user", "assistant", "system", "developer")


def messages_of(items: str | Sequence[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """The messages of a chat. `instructions` come first, joined with system messages that the input begins with.

    Raises RequestError for an item that cannot be made into text.
    """
    conversation = _Conversation()
    if instructions:
        conversation.add_message("system", instructions)
    if isinstance(items, str):
        conversation.add_message("user", items)
        return conversation.messages
    if not items:
        raise RequestError("input is an empty list; it needs at least one item", param="input")
    for number, item in enumerate(items):
        _add_item(conversation, item, f"input[{number}]")
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


def _add_item(conversation: _Conversation, item: dict[str, Any], where: str) -> None:
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if role not in _ROLES:
                raise RequestError(f"{where}.role is {role!r} but must be one of {', '.join(_ROLES)}", param=where)
            conversation.add_message(role, _text(item.get("content"), f"{where}.content"))
        case "function_call":
            names = ("call_id", "name", "arguments")
            conversation.add_call(*(_string(item, name, where) for name in names))
        case "function_call_output":
            output = _text(item.get("output"), f"{where}.output")
            conversation.add_call_output(_string(item, "call_id", where), output)
        case "reasoning":
            parts = item.get("content") or item.get("summary") or []
            conversation.add_reasoning("\n".join(_reasoning_text(part, where) for part in _list(parts, where)))
        case "item_reference":
            message = f"{where} refers to a stored item, but this server keeps no state; send the item itself"
            raise RequestError(message, param=where)
        case kind:
            raise RequestError(
                f"{where} has type {kind!r}, which is not supported; supported are message, function_call, "
                "function_call_output and reasoning",
                param=where,
            )


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of parts", param=where)
    return "\n".join(_part_text(part, f"{where}[{number}]") for number, part in enumerate(content))


def _part_text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(_TEXT_PARTS[kind]) if isinstance(kind, str) and kind in _TEXT_PARTS else None
    if not isinstance(text, str):
        raise RequestError(
            f"{where} has type {kind!r} but this model takes text only: parts of type 'input_text' or 'output_text' "
            "with a text",
            param=where,
        )
    return text


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
