"""When a stream sends an event: every so many tokens (`stream_interval`), and a comment after a long silence."""

import asyncio

from jserve.api.generation.choice import ChoiceUpdate
from jserve.api.http.body_writer import BodyWriter

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment of server-sent events, which clients skip."""


class StreamInterval:
    """Holds updates back until a choice has `interval` new tokens. Its first and its last leave at once."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._held: dict[int, ChoiceUpdate] = {}
        self._begun: set[int] = set()

    def push(self, updates: list[ChoiceUpdate]) -> list[ChoiceUpdate]:
        """The updates that must be sent now."""
        if self._interval == 1:
            return updates
        due = []
        for update in updates:
            held = self._held.pop(update.index, None)
            update = update if held is None else _joined(held, update)
            is_first = update.index not in self._begun
            if is_first or update.finish_reason is not None or len(update.token_ids) >= self._interval:
                self._begun.add(update.index)
                due.append(update)
            else:
                self._held[update.index] = update
        return due

    def rest(self) -> list[ChoiceUpdate]:
        """The updates that are still held, for a stream that ends early."""
        held, self._held = list(self._held.values()), {}
        return held


def _joined(first: ChoiceUpdate, second: ChoiceUpdate) -> ChoiceUpdate:
    logprobs = None if second.logprobs is None else [*(first.logprobs or ()), *second.logprobs]
    return ChoiceUpdate(
        index=first.index,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=logprobs,
        finish_reason=second.finish_reason,
        stop_reason=second.stop_reason,
        reasoning=first.reasoning + second.reasoning,
        tool_calls=first.tool_calls + second.tool_calls,
    )


class KeepAlive:
    """Sends a comment whenever `interval_s` have passed in silence, so that proxies do not end the connection."""

    def __init__(self, writer: BodyWriter, interval_s: float) -> None:
        self._writer = writer
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The head of the response has been sent. An interval of 0 sends nothing."""
        if self._interval_s > 0:
            self.note()
            self._timer = self._loop.call_later(self._interval_s, self._look)

    def note(self) -> None:
        """Something was sent."""
        self._last = self._loop.time()

    def stop(self) -> None:
        """Nothing more may be sent from here."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        silence = self._loop.time() - self._last
        if silence >= self._interval_s:
            if not self._writer.is_paused:
                self._writer.write(KEEP_ALIVE)
            self.note()
            silence = 0.0
        self._timer = self._loop.call_later(self._interval_s - silence, self._look)
