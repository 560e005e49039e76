"""What a chat template can say, found out by trying: whether tools, calls, results and system messages appear.

Templates ignore what they do not know, without a word, so only the rendered text tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAME = "probe_1f9c"
_RESULT = "result-7ab2"
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string", "description": "A letter."}},
            "required": ["a"],
        },
    },
}
_USER = {"role": "user", "content": "Hello"}
_CALL_ID = "abcdefghi"
_CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": _CALL_ID, "type": "function", "function": {"name": _NAME, "arguments": '{"a": "b"}'}}],
}
_ANSWERED = {"role": "tool", "tool_call_id": _CALL_ID, "name": _NAME, "content": _RESULT}


@dataclass(frozen=True, slots=True)
class Probe:
    """One conversation to render."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None


PROBES = {
    "tools": Probe([_USER], [_TOOL]),
    "calls": Probe([_USER, _CALLED, _ANSWERED], [_TOOL]),
    "calls alone": Probe([_USER, _CALLED, _ANSWERED]),
    "system": Probe([{"role": "system", "content": _RESULT}, _USER]),
}


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """`shows_tools`: tools that are offered appear. `shows_calls`: calls and results of earlier turns do."""

    shows_tools: bool
    shows_calls: bool
    takes_system: bool

    @classmethod
    def of(cls, rendered: Mapping[str, str]) -> TemplateFacts:
        """From the rendered `PROBES`, "" standing for one that the template refused."""
        mentions = {name: text.count(_NAME) for name, text in rendered.items()}
        return cls(
            shows_tools=mentions["tools"] > 0,
            # Some show no name beside a result, so the call itself must add one to what the description says.
            shows_calls=mentions["calls"] > mentions["tools"]
            and mentions["calls alone"] > 0
            and _RESULT in rendered["calls"]
            and _RESULT in rendered["calls alone"],
            takes_system=_RESULT in rendered["system"],
        )
