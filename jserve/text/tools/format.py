"""What a tool format is: how its calls are read, and how they are written.

A format reads with a generator over a `TextFeed`, and its `CallForm` says, as data, how calls are spelled, for
grammars and for models whose template does not know tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Reading, TextFeed
from jserve.text.tools.tool import Tool


@dataclass(frozen=True, slots=True)
class CallForm:
    """How calls are spelled: `opening`, calls with `separator` between them, `closing`.

    A call is `before`, its arguments as JSON, `after`. In `before` stands NAME, where the tool's name goes, or
    "NAME", where it goes as a JSON string. `trigger` begins every sequence of calls and nothing else; where it
    is "" calls begin the message, or stand behind one of `marks`, which are pairs: what opens and closes them.
    `also_before` are other ways in which models write `before`.
    """

    before: str
    after: str
    trigger: str = ""
    opening: str = ""
    separator: str = ""
    closing: str = ""
    is_single: bool = False
    also_before: tuple[str, ...] = ()
    marks: tuple[tuple[str, str], ...] = ()

    def write_before(self, name: str) -> str:
        """`before` of a call of `name`."""
        return _with_name(self.before, name)

    def befores(self, name: str) -> list[str]:
        """`before` of a call of `name`, in every spelling."""
        return [_with_name(before, name) for before in (self.before, *self.also_before)]

    def write(self, calls: list[tuple[str, str]]) -> str:
        """The text of calls, given as names and arguments."""
        written = [f"{self.write_before(name)}{arguments}{self.after}" for name, arguments in calls]
        return self.opening + self.separator.join(written) + self.closing


def _with_name(text: str, name: str) -> str:
    return text.replace('"NAME"', json.dumps(name, ensure_ascii=False)).replace("NAME", name)


class ToolFormat(Protocol):
    """One way in which models call tools. Stateless; all state is the reader's."""

    @property
    def name(self) -> str:
        """The format's name on the command line."""

    @property
    def markers(self) -> tuple[str, ...]:
        """What the reader looks for and may be a special token, which is then not skipped."""

    @property
    def form(self) -> CallForm:
        """How calls are spelled that are constrained; `read` understands them."""

    def read(self, feed: TextFeed, draft: Draft, tools: Mapping[str, Tool]) -> Reading[None]:
        """Read a message to its end. May raise TextEnded, once what was read is in the draft."""
