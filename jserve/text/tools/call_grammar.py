"""Grammars of calls: a format's spelling around arguments that follow each tool's schema.

Written from a format's `CallForm`, so that whatever a grammar allows the format's reader understands. A marker
that is a special token of the model stands as that token, else as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jserve.text.grammar import json_rule, literal, marker
from jserve.text.tools.format import ToolFormat
from jserve.text.tools.harmony import CHANNEL, END, MESSAGE, START, Harmony
from jserve.text.tools.tool import Tool

MAX_CALLS = 16
"""Calls of one message that must be calls; without an end a hot model would go on to its last token."""

_TEXT = r"/(.|\n)*/"
_NO_CALL = r"/[ \t\r\n]*[^ \t\r\n{\[](.|\n)*/"
"""Text that does not begin like a call of a format without markers."""

SpecialId = Callable[[str], int | None]
"""The id of a text that llguidance takes for a special token, None for one that is spelled out."""


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """Writes the grammars of one request's calls. `is_parallel`: several calls may follow each other."""

    tool_format: ToolFormat
    tools: Mapping[str, Tool]
    is_parallel: bool
    special_id: SpecialId

    def forced(self) -> str:
        """A message that is calls and nothing else."""
        if isinstance(self.tool_format, Harmony):
            return f"start: analysis? calls\n{self._analysis()}{self._calls(0)}"
        return f"start: calls\n{self._calls(0)}"

    def free(self) -> str:
        """Any text, in which whatever begins as a call goes on as one."""
        if isinstance(self.tool_format, Harmony):
            last = f'other: {self._spell(CHANNEL)} ("final" | "commentary") {self._spell(MESSAGE)} TEXT\n'
            return f"start: analysis* (calls | other)\n{last}{self._analysis()}{self._calls(0)}"
        trigger = self.tool_format.form.trigger
        if not trigger:
            return f"start: calls | other?\nother: OTHER\nOTHER: {_NO_CALL}\n{self._calls(0)}"
        token = self.special_id(trigger)
        head = f"head: {'' if token is None else f'TEXT {marker(token)} | '}spelled\n"
        head += f"spelled[lazy]: TEXT {literal(trigger)}\n"
        return f"start: part* tail\npart: head calls\ntail: TEXT\n{head}TEXT: {_TEXT}\n{self._calls(len(trigger))}"

    def or_answer(self, answer: str) -> str:
        """Calls, or an answer of the form that the grammar `answer` describes."""
        inner = json.loads(answer)["grammars"] if answer.lstrip().startswith("{") else [{"lark_grammar": answer}]
        inner[0] = {**inner[0], "name": "content"}
        outer = f"start: calls | @content\n{self._calls(0)}"
        return json.dumps({"grammars": [{"name": "calls", "lark_grammar": outer}, *inner]})

    def _calls(self, skipped: int) -> str:
        """The rule `calls`, with those that it needs. Its first `skipped` characters have been written."""
        form = self.tool_format.form
        opening = form.opening
        # Calls that begin with the trigger themselves come one at a time where it has been read.
        is_single = not self.is_parallel or form.is_single or (skipped > 0 and not opening)
        rules = []
        for number, tool in enumerate(self.tools.values()):
            before = form.write_before(tool.name)[0 if opening else skipped :]
            schema = {"additionalProperties": False, **tool.parameters} if _takes_none(tool) else tool.parameters
            rules.append(f"call_{number}: {self._spell(before)} arguments_{number} {self._spell(form.after)}\n")
            rules.append(f"arguments_{number}: {json_rule(schema)}\n")
        call = " | ".join(f"call_{number}" for number in range(len(self.tools)))
        more = "" if is_single else f" ({self._spell(form.separator)} call){{0,{MAX_CALLS - 1}}}"
        opened, closed = self._spell(opening[skipped:]), self._spell(form.closing)
        return f"calls: {opened} call{more} {closed}\ncall: {call}\n{''.join(rules)}"

    def _analysis(self) -> str:
        """A message of reasoning of harmony's, and the beginning of the next message."""
        end = self.special_id(END)
        body = "thought: TEXT\n" if end is not None else f"thought[lazy]: TEXT {literal(END)}\n"
        ending = marker(end) if end is not None else ""
        begin = f'{self._spell(CHANNEL)} "analysis" {self._spell(MESSAGE)}'
        return f'analysis: {begin} thought {ending} {self._spell(START)} "assistant"\n{body}TEXT: {_TEXT}\n'

    def _spell(self, text: str) -> str:
        """A rule for exactly `text`, in which special tokens stand as such."""
        special = {m: token for m in self.tool_format.markers if (token := self.special_id(m)) is not None}
        if not special:
            return literal(text) if text else ""
        parts = re.split(f"({'|'.join(map(re.escape, special))})", text)
        return " ".join(marker(special.get(part, part)) for part in parts if part)


def _takes_none(tool: Tool) -> bool:
    """Whether a schema names no parameter at all, which means that there are none and not that all are allowed."""
    return not set(tool.parameters) - {"type", "properties", "description"} and not tool.parameters.get("properties")
