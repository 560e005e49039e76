"""One HTTP request with whoever makes it, from the edge to the last byte of its answer.

The current call is a context variable, set by `Edge` before any handler runs. What protects a caller from
others (the salt of the prefix cache, the account of its key) therefore reaches the engine on every path, and
no endpoint can forget to pass it on.
"""

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from jserve.api.access.account import Account
from jserve.api.access.keys import ANYBODY, ApiKey
from jserve.api.life import RequestLife


@dataclass(slots=True)
class Call:
    """`lives` are the sequences that it started, `num_prompt` its prompts' tokens, each prompt counted once."""

    request_id: str = ""
    method: str = ""
    path: str = ""
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    """W3C `traceparent` and `tracestate`, as far as given."""
    key: ApiKey = ANYBODY
    account: Account | None = None
    arrived: float = field(default_factory=time.time)
    lives: list[RequestLife] = field(default_factory=list)
    num_prompt: int = 0

    @property
    def num_output(self) -> int:
        """Tokens generated for all choices, once they have ended."""
        return sum(life.num_output for life in self.lives)

    @property
    def num_cached(self) -> int:
        """Prompt tokens of all choices that came from the prefix cache."""
        return sum(life.num_cached for life in self.lives)

    @property
    def first_token(self) -> float:
        """When the first token of any choice came; 0 before."""
        return min((life.first_token for life in self.lives if life.first_token), default=0.0)


_current: ContextVar[Call] = ContextVar("call")


def enter_call(call: Call) -> None:
    """Make `call` the current one of the running task and of those that it starts."""
    _current.set(call)


def current_call() -> Call:
    """The call that is being handled; an anonymous one where there is none."""
    return _current.get(None) or Call()
