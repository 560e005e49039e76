"""Tools for models whose chat template does not know them, or knows them in a way that is not understood here.

What a template would do is done with plain messages: tools are described in the system message, calls are
written into the assistant's text, and results come back as the user's. How well a model follows that is the
model's affair; a call that is constrained is well formed in any case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jserve.text.templates.messages import message_calls, part_text
from jserve.text.tools.format import CallForm

Message = Mapping[str, Any]

_DESCRIPTION = """\
# Tools

You may call functions to answer the user. They are described here as JSON, one in each line:
<tools>
{tools}
</tools>

To call one, write its name and its arguments, which are a JSON object that follows its parameters, like this:
{example}
Write no other text with a call. The results come back between <tool_response> and </tool_response>. If no
function is needed, answer as usual."""


def describe_tools(tools: Sequence[Mapping[str, Any]], form: CallForm) -> str:
    """Instructions for calling `tools` (as OpenAI's clients describe them)."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return _DESCRIPTION.format(tools=lines, example=form.write([("FUNCTION", '{"PARAMETER": VALUE}')]))


def with_instructions(messages: Sequence[Message], text: str, *, takes_system: bool) -> list[Message]:
    """The messages with `text` in the system message, or before the first one of a model that takes none."""
    roles = ("system", "developer") if takes_system else ("system", "developer", "user")
    if messages and messages[0].get("role") in roles:
        first = dict(messages[0])
        first["content"] = _joined(first.get("content"), text, after=takes_system)
        return [first, *messages[1:]]
    return [{"role": "system" if takes_system else "user", "content": text}, *messages]


def plain_history(messages: Sequence[Message], form: CallForm) -> list[Message]:
    """The messages with calls as the assistant's text and results as the user's; neighbours are put together."""
    plain: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        fresh = dict(message)
        fresh.pop("tool_calls", None)
        calls = message_calls(message, f"messages[{number}]")
        is_result = fresh.get("role") in ("tool", "function")
        if calls:
            written = form.write([_name_and_arguments(call) for call in calls])
            fresh["content"] = _joined(fresh.get("content"), written, after=True)
        if is_result:
            text = _text(fresh.get("content"), f"messages[{number}].content")
            fresh = {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
        # Templates that demand that roles alternate know no results, so results join what the user says.
        if plain and plain[-1].get("role") == fresh.get("role") == "user" and (is_result or plain[-1].pop("_", None)):
            fresh["content"] = _joined(plain.pop()["content"], fresh["content"], after=True)
        if is_result:
            fresh["_"] = True
        plain.append(fresh)
    for message in plain:
        message.pop("_", None)
    return list(plain)


def _name_and_arguments(call: Mapping[str, Any]) -> tuple[str, str]:
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return function["name"], written


def _joined(content: Any, text: Any, *, after: bool) -> Any:
    """`content`, a string or parts, and `text`, in this order or the other."""
    if isinstance(content, list) or isinstance(text, list):
        parts = [*_parts(content), *_parts(text)] if after else [*_parts(text), *_parts(content)]
        return [part for part in parts if part != {"type": "text", "text": ""}]
    both = (content or "", text) if after else (text, content or "")
    return "\n\n".join(part for part in both if part)


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content or ""}]


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):
        parts = (part_text(part, "tool", f"{where}[{number}]") for number, part in enumerate(content))
        return "\n".join(part or "" for part in parts)
    return "" if content is None else str(content)
