"""One HTTP request with whoever makes it, from the edge to the last byte of its answer.

The current call is a context variable, set by `Edge` before any handler runs. What protects a caller from
others (the salt of the prefix cache, the account of its key) therefore reaches the engine on every path, and
no endpoint can forget to pass it on.
"""

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from jserve.api.access.account import Account
from jserve.api.access.keys import ANYBODY, ApiKey
from jserve.api.life import RequestLife
from jserve.errors import RequestError


@dataclass(slots=True)
class Call:
    """`lives` are the sequences that it started, `num_prompt` its prompts' tokens, each prompt counted once."""

    request_id: str = ""
    method: str = ""
    path: str = ""
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    """W3C `traceparent` and `tracestate`, as far as given."""
    client: str = ""
    """The address that it comes from."""
    key: ApiKey = ANYBODY
    account: Account | None = None
    is_let_in: bool = False
    """Whether its key, where one is needed, is a valid one."""
    goes_on: bool = False
    """Whether it is answered behind, after its HTTP answer."""
    least_priority: int = -(2**63)
    """The smallest number that its requests may have as `priority`: lower is earlier."""
    arrived: float = field(default_factory=time.time)
    lives: list[RequestLife] = field(default_factory=list)
    prompts: list[Sequence[int]] = field(default_factory=list)
    """Their tokens."""
    num_prompt: int = 0
    is_streamed: bool = False
    num_places: int = 0
    """Sequences that its account counts as open."""

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

    def open_sequences(self, count: int) -> None:
        """So many sequences are about to start. Raises RateLimitError where the key may not have as many."""
        if self.account is None:
            return
        more = max(0, len(self.lives) + count - self.num_places)
        self.account.open_more(more, self.num_places)
        self.num_places += more

    def check_priority(self, priority: int) -> None:
        """Raise RequestError where the key has no right to this priority. Without keys everybody has any."""
        highest = 0 if self.account is None else self.account.highest_priority
        if not self.key.is_anonymous and highest is not None and priority < highest:
            raise RequestError(
                f"priority is {priority} but this API key may ask for {highest} and above (lower is earlier); leave it "
                "out, or have `highest_priority` lowered for this key in the server's --limits file",
                param="priority",
            )


_current: ContextVar[Call] = ContextVar("call")


def enter_call(call: Call) -> None:
    """Make `call` the current one of the running task and of those that it starts."""
    _current.set(call)


def current_call() -> Call:
    """The call that is being handled; an anonymous one where there is none."""
    return _current.get(None) or Call()
