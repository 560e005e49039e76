"""Anthropic's messages as those of a chat.

Results of tools are blocks of a user's message there and messages of their own here. Errors name the block:
`messages[2].content[0]`.
"""

import json
from collections.abc import Sequence
from typing import Any

from jserve.api.anthropic.body import MessageParam
from jserve.errors import RequestError

CALL_PREFIX = "toolu_"
"""Ids of tool calls begin with it for the client; models have ids of their own, which some templates check."""

_BILLING = "x-anthropic-billing-header"
"""Claude Code begins its first system block with it and changes it with every request, which would make every
prompt a new one for the prefix cache. It says nothing to a model."""


def messages_of(system: str | Sequence[Any] | None, messages: Sequence[MessageParam]) -> list[dict[str, Any]]:
    """The messages of a chat. Raises RequestError for a block that cannot be made into text."""
    if not messages:
        raise RequestError("messages: at least one message is required", param="messages")
    chat: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    if prompt := _system_text(system):
        chat.append({"role": "system", "content": prompt})
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        if isinstance(message.content, str):
            chat.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            chat.append(_assistant(message.content, where, names))
        else:
            chat += _user(message.role, message.content, where, names)
    return chat


def _system_text(system: str | Sequence[Any] | None) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    texts = [_text(block, f"system[{number}]") for number, block in enumerate(system)]
    return "\n\n".join(text for text in texts if not text.startswith(_BILLING))


def _user(role: str, blocks: list[dict[str, Any]], where: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """A message per result of a tool, and one per run of texts between them."""
    messages: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        here = f"{where}[{number}]"
        if block.get("type") == "tool_result":
            messages.append(_tool_result(block, here, names))
            continue
        text = _text(block, here)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n{text}"
        else:
            messages.append({"role": role, "content": text})
    return messages or [{"role": role, "content": ""}]


def _tool_result(block: dict[str, Any], where: str, names: dict[str, str]) -> dict[str, Any]:
    call_id = _string(block, "tool_use_id", where).removeprefix(CALL_PREFIX)
    content = block.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(_text(part, f"{where}.content[{number}]") for number, part in enumerate(content))
    if not isinstance(content, str):
        raise RequestError(f"{where}.content must be a string or a list of blocks", param=f"{where}.content")
    if block.get("is_error") and not content.lower().startswith("error"):
        content = f"Error: {content}"  # Templates know no failed results; the model has to read it.
    message = {"role": "tool", "tool_call_id": call_id, "content": content}
    return message | ({"name": names[call_id]} if call_id in names else {})


def _assistant(blocks: list[dict[str, Any]], where: str, names: dict[str, str]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        here = f"{where}[{number}]"
        match block.get("type"):
            case "thinking":
                thoughts.append(_string(block, "thinking", here))
            case "redacted_thinking":
                pass  # Nobody but Anthropic can read it.
            case "tool_use":
                calls.append(_call(block, here, names))
            case _:
                texts.append(_text(block, here))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    message |= {"reasoning_content": "\n".join(thoughts)} if any(thoughts) else {}
    return message | ({"tool_calls": calls} if calls else {})


def _call(block: dict[str, Any], where: str, names: dict[str, str]) -> dict[str, Any]:
    call_id, name = _string(block, "id", where).removeprefix(CALL_PREFIX), _string(block, "name", where)
    arguments = block.get("input") or {}
    if not isinstance(arguments, dict):
        raise RequestError(f"{where}.input must be an object", param=f"{where}.input")
    names[call_id] = name
    # Written as models write it, so that the prefix cache knows the call again.
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}


def _text(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    text = block.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise RequestError(
            f"{where} has type {kind!r}, which is not supported here: this model takes text only. Supported are "
            "text, tool_result (of the user), tool_use and thinking (of the assistant)",
            param=where,
        )
    return text


def _string(block: dict[str, Any], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{name} must be a string", param=f"{where}.{name}")
    return value
