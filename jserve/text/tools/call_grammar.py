"""Grammars of calls: a format's spelling around arguments that follow each tool's schema.

Written from a format's `CallForm`, so that whatever a grammar allows the format's reader understands. A marker
that is a special token of the model stands as that token, else as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jserve.text.grammars.grammar import json_rule, literal, marker
from jserve.text.grammars.json_schema import Strictness
from jserve.text.tools.format import ToolFormat
from jserve.text.tools.harmony import CHANNEL, CONSTRAIN, END, MESSAGE, START, Harmony
from jserve.text.tools.tool import Tool

MAX_CALLS = 16
"""Calls of one message that must be calls; without an end a hot model would go on to its last token."""

_TEXT = r"/(.|\n)*/"
_NO_CALL = r"/[ \t\r\n]*[^ \t\r\n{\[](.|\n)*/"
"""Text that does not begin like a call of a format without markers."""
_MAYBE_NO_CALL = r"/([ \t\r\n]*[^ \t\r\n{\[](.|\n)*)?/"

SpecialId = Callable[[str], int | None]
"""The id of a text that llguidance takes for a special token, None for one that is spelled out."""


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """Writes the grammars of one request's calls. `is_parallel`: several calls may follow each other.

    A tool that is not strict is held to its schema as `strictness` says.
    """

    tool_format: ToolFormat
    tools: Mapping[str, Tool]
    is_parallel: bool
    special_id: SpecialId
    strictness: Strictness = "enforceable"

    def forced(self) -> str:
        """A message that is calls and nothing else."""
        if isinstance(self.tool_format, Harmony):
            return f"start: analysis? calls\n{self._analysis()}{self._calls(0)}"
        return f"start: calls\n{self._calls(0)}"

    def free(self) -> str:
        """Any text, in which whatever begins as a call goes on as one."""
        if isinstance(self.tool_format, Harmony):
            return f"start: (analysis | preamble)* (calls | final TEXT)\n{self._channels()}{self._calls(0)}"
        form = self.tool_format.form
        if not form.trigger:
            return self._free_of_trigger(form.marks)
        rules = f"{self._head('head', 'TEXT', form.trigger)}TEXT: {_TEXT}\n{self._calls(len(form.trigger))}"
        return f"start: part* tail\npart: head calls\ntail: TEXT\n{rules}"

    def or_answer(self, answer: str) -> str:
        """Calls, or an answer of the form that the grammar `answer` describes."""
        if isinstance(self.tool_format, Harmony):
            outer = f"start: (analysis | preamble)* (calls | final @content)\n{self._channels()}{self._calls(0)}"
        else:
            outer = f"start: calls | @content\n{self._calls(0)}"
        return _with_content(outer, answer)

    def final_answer(self, answer: str) -> str:
        """An answer of the form that `answer` describes in harmony's last channel, after any analysis."""
        return _with_content(f"start: analysis* final @content\n{self._channels()}", answer)

    def _free_of_trigger(self, marks: tuple[tuple[str, str], ...]) -> str:
        """Calls where the message begins with one, and behind every mark."""
        parts, rules = [], []
        for number, (begin, end) in enumerate(marks):
            closed = f" ({self._spell(end)})?" if end else ""
            parts.append(f"(first_{number} calls{closed})")
            rules.append(f"part_{number}: head_{number} calls{closed}\n")
            rules += [self._head(f"first_{number}", "BEFORE", begin), self._head(f"head_{number}", "TEXT", begin)]
        if not marks:
            return f"start: calls | other?\nother: OTHER\nOTHER: {_NO_CALL}\n{self._calls(0)}"
        more = " | ".join(f"part_{number}" for number in range(len(marks)))
        start = f"start: calls | other? | ({' | '.join(parts)}) ({more})* TEXT\nother: OTHER\n"
        terminals = f"OTHER: {_NO_CALL}\nBEFORE: {_MAYBE_NO_CALL}\nTEXT: {_TEXT}\n"
        return start + "".join(rules) + terminals + self._calls(0)

    def _head(self, name: str, before: str, mark: str) -> str:
        """The rule `name`: text of the terminal `before`, up to `mark`, as a token or spelled out."""
        token = self.special_id(mark)
        head = f"{name}: {'' if token is None else f'{before} {marker(token)} | '}{name}_spelled\n"
        return f"{head}{name}_spelled[lazy]: {before} {literal(mark)}\n"

    def _calls(self, skipped: int) -> str:
        """The rule `calls`, with those that it needs. Its first `skipped` characters have been written."""
        form = self.tool_format.form
        opening = form.opening
        # Calls that begin with the trigger themselves come one at a time where it has been read.
        is_single = not self.is_parallel or form.is_single or (skipped > 0 and not opening)
        rules = []
        for number, tool in enumerate(self.tools.values()):
            befores = form.befores(tool.name) if opening or not skipped else [form.write_before(tool.name)[skipped:]]
            before = " | ".join(f"({self._spell(before)})" for before in befores)
            schema = {"additionalProperties": False, **tool.parameters} if _takes_none(tool) else tool.parameters
            rules.append(f"call_{number}: ({before}) arguments_{number} {self._spell(form.after)}\n")
            strictness: Strictness = "exact" if tool.is_strict else self.strictness
            rules.append(f"arguments_{number}: {json_rule(schema, strictness=strictness)}\n")
        call = " | ".join(f"call_{number}" for number in range(len(self.tools)))
        more = "" if is_single else f" ({self._spell(form.separator)} call){{0,{MAX_CALLS - 1}}}"
        opened, closed = self._spell(opening[skipped:]), self._spell(form.closing)
        return f"calls: {opened} call{more} {closed}\ncall: {call}\n{''.join(rules)}"

    def _channels(self) -> str:
        """The rules `analysis`, `preamble` and `final`, which ends where the text of the last message begins."""
        channel, message = self._spell(CHANNEL), self._spell(MESSAGE)
        preamble = f'preamble: {channel} "commentary" {message} thought {self._to_next()}\n'
        constrained = f"({self._spell(f' {CONSTRAIN}json')})?"
        return f'{self._analysis()}{preamble}final: {channel} "final" {constrained} {message}\n'

    def _analysis(self) -> str:
        """A message of reasoning of harmony's, and the beginning of the next message."""
        is_token = self.special_id(END) is not None
        body = "thought: TEXT\n" if is_token else f"thought[lazy]: TEXT {literal(END)}\n"
        begin = f'{self._spell(CHANNEL)} "analysis" {self._spell(MESSAGE)}'
        return f"analysis: {begin} thought {self._to_next()}\n{body}TEXT: {_TEXT}\n"

    def _to_next(self) -> str:
        """From a message's text to the next message; where the end is no token, it is of the text."""
        end = self.special_id(END)
        return f'{"" if end is None else marker(end)} {self._spell(START)} "assistant"'

    def _spell(self, text: str) -> str:
        """A rule for exactly `text`, in which special tokens stand as such."""
        special = {m: token for m in self.tool_format.markers if (token := self.special_id(m)) is not None}
        if not special:
            return literal(text) if text else ""
        parts = re.split(f"({'|'.join(map(re.escape, special))})", text)
        return " ".join(marker(special.get(part, part)) for part in parts if part)


def _with_content(outer: str, answer: str) -> str:
    """The grammar `outer`, in which @content is the grammar `answer`."""
    inner = json.loads(answer)["grammars"] if answer.lstrip().startswith("{") else [{"lark_grammar": answer}]
    inner[0] = {**inner[0], "name": "content"}
    return json.dumps({"grammars": [{"name": "calls", "lark_grammar": outer}, *inner]})


def _takes_none(tool: Tool) -> bool:
    """Whether a schema names no parameter at all, which means that there are none and not that all are allowed."""
    return not set(tool.parameters) - {"type", "properties", "description"} and not tool.parameters.get("properties")
