"""Anthropic's messages as those of a chat.

Results of tools are blocks of a user's message there and messages of their own here. Errors name the block:
`messages[2].content[0]`. Blocks of tools that this server does not have are read for their text (`block_text.py`).
"""

import json
from collections.abc import Sequence
from typing import Any

from jserve.api.anthropic.block_text import UnreadableBlockError, text_of, texts_in
from jserve.api.anthropic.body import MessageParam
from jserve.api.openai.left_out import log_left_out
from jserve.errors import RequestError
from jserve.text.templates.messages import called_arguments, left_out_note

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
    left_out: list[str] = []
    if prompt := _system_text(system):
        chat.append({"role": "system", "content": prompt})
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        if isinstance(message.content, str):
            chat.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            chat.append(_assistant(message.content, where, names, left_out))
        else:
            chat += _user(message.role, message.content, where, names, left_out)
    log_left_out("blocks", left_out)
    return chat


def _system_text(system: str | Sequence[Any] | None) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    texts = [_text(block, f"system[{number}]") or "" for number, block in enumerate(system)]
    return "\n\n".join(text for text in texts if not text.startswith(_BILLING))


def _user(
    role: str, blocks: list[dict[str, Any]], where: str, names: dict[str, str], left_out: list[str]
) -> list[dict[str, Any]]:
    """A message per result of a tool, and one per run of texts between them."""
    messages: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        here = f"{where}[{number}]"
        if block.get("type") == "tool_result":
            messages.append(_tool_result(block, here, names))
            continue
        text = _text(block, here)
        if text is None:
            left_out.append(block["type"])
        elif messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n{text}"
        else:
            messages.append({"role": role, "content": text})
    return messages or [{"role": role, "content": ""}]


def _tool_result(block: dict[str, Any], where: str, names: dict[str, str]) -> dict[str, Any]:
    call_id = _string(block, "tool_use_id", where).removeprefix(CALL_PREFIX)
    content = block.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(_result_text(part, f"{where}.content[{number}]") for number, part in enumerate(content))
    if not isinstance(content, str):
        raise RequestError(f"{where}.content must be a string or a list of blocks", param=f"{where}.content")
    if block.get("is_error") and not content.lower().startswith("error"):
        content = f"Error: {content}"  # Templates know no failed results; the model has to read it.
    message = {"role": "tool", "tool_call_id": call_id, "content": content}
    return message | ({"name": names[call_id]} if call_id in names else {})


def _result_text(part: Any, where: str) -> str:
    """What the model reads of a part of a tool's result. The client cannot change what a tool gave it."""
    try:
        return _text(part, where) or ""
    except UnreadableBlockError:
        return left_out_note(part["type"])


def _assistant(blocks: list[dict[str, Any]], where: str, names: dict[str, str], left_out: list[str]) -> dict[str, Any]:
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
            case "text":
                texts.append(_text(block, here) or "")
            case str(kind):
                readable = texts_in(block)
                texts += [f"\n{text}\n" for text in readable]
                left_out += [] if readable else [kind]
            case _:
                _text(block, here)  # Raises.
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    message |= {"reasoning_content": "\n".join(thoughts)} if any(thoughts) else {}
    return message | ({"tool_calls": calls} if calls else {})


def _call(block: dict[str, Any], where: str, names: dict[str, str]) -> dict[str, Any]:
    call_id, name = _string(block, "id", where).removeprefix(CALL_PREFIX), _string(block, "name", where)
    arguments = block.get("input") or {}
    if isinstance(arguments, str):  # Of a call that was cut off, what a client has of it.
        arguments = called_arguments(arguments)
    if not isinstance(arguments, dict):
        raise RequestError(f"{where}.input must be an object", param=f"{where}.input")
    names[call_id] = name
    # Written as models write it, so that the prefix cache knows the call again.
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}


def _text(block: Any, where: str) -> str | None:
    """The text of a block; None where it has none and is left out. Raises RequestError, naming the block."""
    try:
        return text_of(block)
    except RequestError as error:
        raise type(error)(f"{where} {error}", param=where) from None


def _string(block: dict[str, Any], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{name} must be a string", param=f"{where}.{name}")
    return value
