"""Calls as a list of JSON objects behind a marker: Granite 3, Phi-4-mini, Command R7B and A, Hunyuan.

Granite: <|tool_call|>[{"name": "f", "arguments": {...}}]. Phi: functools[...] or <|tool_call|>{...}<|/tool_call|>.
Command: <|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {...}}]<|END_ACTION|>.
Hunyuan: <tool_calls>[{"name": "f", "arguments": {...}}]</tool_calls>.
"""

from __future__ import annotations

from collections.abc import Mapping

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Reading, TextFeed
from jserve.text.tools.format import CallForm
from jserve.text.tools.json_call import read_json_list
from jserve.text.tools.tool import Tool

_CALL = '{"name": "NAME", "arguments": '
_ACTION = '{"tool_call_id": "0", "tool_name": "NAME", "parameters": '


class JsonList:
    """Calls behind one of `begins` (constrained ones behind the first), perhaps with `end` behind them."""

    def __init__(self, name: str, begins: tuple[str, ...], end: str = "", before: str = _CALL) -> None:
        self.name = name
        self.markers = (*begins, end) if end else begins
        self.form = CallForm(
            before=before, after="}", opening=f"{begins[0]}[", separator=", ", closing=f"]{end}", trigger=begins[0]
        )
        self._begins = begins
        self._end = end

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message."""
        begin = yield from feed.copy_until(self._begins, draft.content)
        while begin:
            feed.record()
            yield from feed.skip_space()
            is_broken = yield from read_json_list(feed, draft, begin + feed.recorded())
            if self._end and not is_broken:
                yield from feed.skip_space()
                yield from feed.close(self._end)
            begin = yield from feed.copy_until(self._begins, draft.arguments if is_broken else draft.content)


def hunyuan() -> JsonList:
    return JsonList("hunyuan_a13b", ("<tool_calls>",), "</tool_calls>")


def granite() -> JsonList:
    return JsonList("granite", ("<|tool_call|>", "<tool_call>"))


def phi4_mini() -> JsonList:
    return JsonList("phi4_mini_json", ("<|tool_call|>", "functools"), "<|/tool_call|>")


def cohere_command() -> JsonList:
    return JsonList("cohere_command3", ("<|START_ACTION|>",), "<|END_ACTION|>", _ACTION)
