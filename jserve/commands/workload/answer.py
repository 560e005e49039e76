"""What an answer that passes by says about itself: when its first token came, how many there were, and its status."""

from typing import Any

import msgspec

_MOST = 1 << 20
"""Bytes of a line or of a whole answer that are looked at; longer ones are counted by their length."""
_CHARACTERS = 4


class AnswerFacts:
    """Fed with the parts of a body; keeps numbers, and of the text only the line that is not complete yet."""

    def __init__(self, content_type: str) -> None:
        self._is_lines = any(kind in content_type for kind in ("event-stream", "ndjson"))
        self._rest = bytearray()
        self._bytes = 0
        self._events = 0
        self.has_token = False
        self.input_length: int | None = None
        self.output_length: int | None = None

    def feed(self, data: bytes) -> bool:
        """Take a part of the body; True with the part that holds the first token."""
        self._bytes += len(data)
        if len(self._rest) + len(data) <= _MOST:
            self._rest += data
        had_token = self.has_token
        if self._is_lines:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                self._read_line(line)
        return self.has_token and not had_token

    def end(self) -> None:
        """The body is complete."""
        if self._rest:
            self._read_line(bytes(self._rest))
        self._rest.clear()

    @property
    def guessed_tokens(self) -> int:
        """Tokens of the answer where nobody has counted them: its events, or its bytes."""
        return self._events if self._is_lines else self._bytes // _CHARACTERS

    def _read_line(self, line: bytes) -> None:
        line = line.removeprefix(b"data:").strip()
        if not line.startswith(b"{"):
            return
        self._events += 1
        if self.has_token and b"usage" not in line and b"eval_count" not in line:
            return
        try:
            event = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return
        self.has_token = self.has_token or _holds_token(event)
        self._read_usage(event)

    def _read_usage(self, event: dict[str, Any]) -> None:
        message = event.get("message")
        response = event.get("response")
        for holder in (event, message, response):
            if not isinstance(holder, dict):
                continue
            usage = holder.get("usage")
            counts = usage if isinstance(usage, dict) else holder
            for name in ("prompt_tokens", "input_tokens", "prompt_eval_count"):
                if isinstance(counts.get(name), int):
                    self.input_length = counts[name] + _cached(counts)
            for name in ("completion_tokens", "output_tokens", "eval_count"):
                if isinstance(counts.get(name), int):
                    self.output_length = counts[name]


def _cached(counts: dict[str, Any]) -> int:
    """Anthropic's API counts what came out of a cache apart from the other tokens of the prompt."""
    names = ("cache_read_input_tokens", "cache_creation_input_tokens")
    return sum(counts[name] for name in names if isinstance(counts.get(name), int))


def _holds_token(event: dict[str, Any]) -> bool:
    """Whether an event of a stream holds something that was generated, in any of the four APIs."""
    choices = event.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            delta = choice.get("delta") if isinstance(choice, dict) else None
            holder = delta if isinstance(delta, dict) else choice
            if any(holder.get(name) for name in ("content", "text", "reasoning_content", "reasoning", "tool_calls")):
                return True
        return False
    message = event.get("message")
    if isinstance(message, dict) and any(message.get(name) for name in ("content", "thinking", "tool_calls")):
        return event.get("type") != "message_start"
    kind = event.get("type")
    if isinstance(kind, str):
        return kind == "content_block_delta" or kind.endswith(".delta")
    return bool(event.get("response") or event.get("thinking")) and not isinstance(event.get("response"), dict)
