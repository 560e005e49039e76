"""What a reader has found, gathered into the piece that the next chunk of the answer is made of."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from jserve.text.output.pieces import OutputPiece, ToolCallDelta

_ALPHANUMERIC = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_SPACE = " \t\r\n"


def call_id() -> str:
    """A fresh id of a call, as vLLM makes them."""
    return f"chatcmpl-tool-{secrets.token_hex(16)}"


def short_call_id() -> str:
    """Nine letters and digits: the templates of Mistral take no other."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class Draft:
    """A message as it grows.

    White space around reasoning and calls belongs to the format and not to the message, so white space is
    held back until it is known what follows it. Calls beyond `max_calls` are dropped.
    """

    __slots__ = (
        "_arguments", "_contents", "_drops_space", "_has_content", "_held", "_is_broken_off", "_names", "_new_id",
        "_reasoning", "_with_reasoning", "is_reasoning", "max_calls", "num_calls",
    )  # fmt: skip

    def __init__(
        self,
        *,
        max_calls: int | None = None,
        with_reasoning: bool = True,
        new_id: Callable[[], str] = call_id,
    ) -> None:
        self.num_calls = 0
        self.max_calls = max_calls
        self.is_reasoning = False
        self._with_reasoning = with_reasoning
        self._new_id = new_id
        self._contents: list[str] = []
        self._reasoning: list[str] = []
        self._names: dict[int, str] = {}
        self._arguments: dict[int, list[str]] = {}
        self._held: list[str] = []
        self._drops_space = False
        self._has_content = False
        self._is_broken_off = False

    def content(self, text: str) -> None:
        """Text for whoever reads the message."""
        if self._is_broken_off and text.strip(_SPACE):
            self._is_broken_off = False
            if self._has_content:
                self._contents.append("\n\n")
        before = len(self._contents)
        self._add(text, self._contents)
        self._has_content = self._has_content or len(self._contents) > before

    def break_content(self) -> None:
        """Something stands between the content so far and what may follow, which is a paragraph of its own."""
        self._drop_space()
        self._is_broken_off = True

    def reasoning(self, text: str) -> None:
        """Text that the model thinks."""
        if self._with_reasoning:
            self._add(text, self._reasoning)

    def begin_reasoning(self) -> None:
        """The model thinks from here on."""
        self.is_reasoning = True
        self._drop_space()

    def end_reasoning(self) -> None:
        """The model has stopped to think."""
        self.is_reasoning = False
        self._drop_space()

    def begin_call(self, name: str) -> None:
        """A call of the tool `name`; its arguments follow."""
        self.break_content()
        index, self.num_calls = self.num_calls, self.num_calls + 1
        if self._is_kept:
            self._names[index] = name
            self._arguments[index] = []

    def arguments(self, text: str) -> None:
        """More of the newest call's arguments."""
        if text and self._is_kept:
            self._arguments.setdefault(self.num_calls - 1, []).append(text)

    def end(self) -> None:
        """The text is over: white space at its end is content, unless it stands beside a call."""
        if not self._drops_space and not self.is_reasoning:
            self._contents += self._held
        self._held = []

    def take(self) -> OutputPiece:
        """What was found since the last time."""
        deltas = [
            ToolCallDelta(index, self._new_id(), self._names[index], "".join(arguments))
            if index in self._names
            else ToolCallDelta(index, arguments="".join(arguments))
            for index, arguments in self._arguments.items()
        ]
        piece = OutputPiece("".join(self._contents), "".join(self._reasoning), deltas)
        self._contents, self._reasoning, self._names, self._arguments = [], [], {}, {}
        return piece

    @property
    def has_calls(self) -> bool:
        """Whether the message has calls, those that were dropped left out."""
        return self.num_calls > 0 and self.max_calls != 0

    @property
    def _is_kept(self) -> bool:
        return self.max_calls is None or self.num_calls <= self.max_calls

    def _add(self, text: str, target: list[str]) -> None:
        if self._drops_space:
            text = text.lstrip(_SPACE)
            if not text:
                return
            self._drops_space = False
        solid = text.rstrip(_SPACE)
        if solid:
            target += [*self._held, solid]
            self._held = []
        if len(solid) < len(text):
            self._held.append(text[len(solid) :])

    def _drop_space(self) -> None:
        self._held, self._drops_space = [], True
