"""What a tool format is: how its calls are read, and how they are written.

A format reads with a generator over a `TextFeed`, and its `CallForm` says, as data, how calls are spelled, for
grammars and for models whose template does not know tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from jserve.text.tools.draft import Draft
from jserve.text.tools.feed import Reading, TextFeed
from jserve.text.tools.tool import Tool


@dataclass(frozen=True, slots=True)
class CallForm:
    """How calls are spelled: `opening`, calls with `separator` between them, `closing`.

    A call is `before`, its arguments as JSON, `after`. In `before` stands NAME, where the tool's name goes, or
    "NAME", where it goes as a JSON string. `trigger` begins every sequence of calls and nothing else; where it
    is "" calls begin the message, and text that begins otherwise has none.
    """

    before: str
    after: str
    trigger: str = ""
    opening: str = ""
    separator: str = ""
    closing: str = ""
    is_single: bool = False

    def write_before(self, name: str) -> str:
        """`before` of a call of `name`."""
        return self.before.replace('"NAME"', json.dumps(name, ensure_ascii=False)).replace("NAME", name)

    def write(self, calls: list[tuple[str, str]]) -> str:
        """The text of calls, given as names and arguments."""
        written = [f"{self.write_before(name)}{arguments}{self.after}" for name, arguments in calls]
        return self.opening + self.separator.join(written) + self.closing


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
