"""What a key has used, against what it may: token buckets on the monotonic clock."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from jserve.api.access.keys import ApiKey
from jserve.api.access.limits import Limit, Limits
from jserve.errors import RateLimitError

Clock = Callable[[], float]
_MINUTE_S = 60.0
_DAY_S = 86_400.0
_CONCURRENT_RETRY_S = 1.0


class TokenBucket:
    """Holds at most `capacity` tokens and gains as many in each period, evenly. It may be overdrawn."""

    __slots__ = ("_clock", "_level", "_period_s", "_updated", "capacity")

    def __init__(self, capacity: int, clock: Clock, period_s: float = _MINUTE_S) -> None:
        self.capacity = capacity
        self._clock = clock
        self._period_s = period_s
        self._level = float(capacity)
        self._updated = clock()

    @property
    def level(self) -> float:
        """Tokens in it now; below 0 while it is overdrawn."""
        now = self._clock()
        gained = (now - self._updated) * self.capacity / self._period_s
        self._level = min(float(self.capacity), self._level + gained)
        self._updated = now
        return self._level

    def seconds_until(self, level: float) -> float:
        """How long it takes to reach `level`; 0 where it has."""
        return max(0.0, (level - self.level) * self._period_s / self.capacity)

    def take(self, count: float) -> None:
        """Remove `count` tokens, whether it has them or not; a negative count adds them."""
        self._level = min(float(self.capacity), self.level - count)


class Account:
    """The use of one key. Every refusal is a RateLimitError and is counted in `rejections` by kind."""

    def __init__(self, key_id: str, limit: Limit, rejections: Counter[tuple[str, str]], clock: Clock) -> None:
        self._key_id = key_id
        self._clock = clock
        self._rejections = rejections
        self._num_open = 0
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self._day_tokens: TokenBucket | None = None
        self.apply(limit)

    def apply(self, limit: Limit) -> None:
        """Hold the key to `limit` from now on. What it has used lately counts against the new rates."""
        self.limit = limit
        self._max_open = limit.concurrent_requests
        self.highest_priority = limit.highest_priority
        """The smallest `priority` that the key may ask for; None for any."""
        self._requests = self._bucket(self._requests, limit.requests_per_minute)
        self._tokens = self._bucket(self._tokens, limit.tokens_per_minute)
        self._day_tokens = self._bucket(self._day_tokens, limit.tokens_per_day, _DAY_S)

    def _bucket(
        self, before: TokenBucket | None, capacity: int | None, period_s: float = _MINUTE_S
    ) -> TokenBucket | None:
        if capacity is None or (before is not None and before.capacity == capacity):
            return None if capacity is None else before
        bucket = TokenBucket(capacity, self._clock, period_s)
        if before is not None:
            bucket.take(before.capacity - before.level)
        return bucket

    @property
    def _token_buckets(self) -> Iterator[tuple[TokenBucket, str, str]]:
        """The buckets that tokens are taken from, each with the kind of its refusals and the length of its period."""
        if self._tokens is not None:
            yield self._tokens, "tokens", "minute"
        if self._day_tokens is not None:
            yield self._day_tokens, "tokens_per_day", "day"

    def open_request(self) -> None:
        """A request begins, as one sequence, which is open until `close`. Raises RateLimitError."""
        self._check_places(1)
        self.check_tokens()
        if self._requests is not None:
            if wait := self._requests.seconds_until(1):
                self._refuse("requests", f"{self._requests.capacity} requests per minute", "slow down", wait)
            self._requests.take(1)
        self._num_open += 1

    def of_day(self) -> "Account":
        """An account that shares the day's tokens and knows no other limit, for work that nobody waits for."""
        account = Account(self._key_id, Limit(highest_priority=None), self._rejections, self._clock)
        account._day_tokens = self._day_tokens
        return account

    def check_tokens(self) -> None:
        """Raise RateLimitError where all tokens are spent for now."""
        for bucket, kind, period in self._token_buckets:
            if wait := bucket.seconds_until(1):
                self._refuse(kind, f"{bucket.capacity} tokens per {period}", "slow down", wait)

    def open_more(self, count: int, num_held: int) -> None:
        """A request that holds `num_held` places turns out to have `count` sequences more. Raises RateLimitError."""
        if self._max_open is not None and num_held + count > self._max_open:
            alone = f"this request alone has {num_held + count}"
            self._refuse("concurrent", f"{self._max_open} sequences (prompts and choices) at once", alone, None)
        self._check_places(count)
        self._num_open += count

    def close(self, count: int) -> None:
        """So many sequences that were opened are over."""
        self._num_open -= count

    def _check_places(self, count: int) -> None:
        if self._max_open is not None and self._num_open + count > self._max_open:
            limit = f"{self._max_open} sequences (prompts and choices) at once"
            self._refuse("concurrent", limit, f"wait until some of {self._num_open} are over", _CONCURRENT_RETRY_S)

    def reserve(self, num_tokens: int) -> None:
        """Take a prompt's tokens, all or none. Raises RateLimitError."""
        for bucket, kind, period in self._token_buckets:
            limit = f"{bucket.capacity} tokens per {period}"
            if num_tokens > bucket.capacity:
                self._refuse(kind, limit, f"this prompt alone has {num_tokens}", None)
            if wait := bucket.seconds_until(num_tokens):
                self._refuse(kind, limit, f"this prompt has {num_tokens}", wait)
        self.spend(num_tokens)

    def spend(self, num_tokens: int) -> None:
        """Account for tokens that were generated; a negative number undoes a reservation."""
        for bucket, _, _ in self._token_buckets:
            bucket.take(num_tokens)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's `x-ratelimit-*` headers, as of now."""
        lines: list[tuple[bytes, bytes]] = []
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                values = {
                    "limit": str(bucket.capacity),
                    "remaining": str(max(0, math.floor(bucket.level))),
                    "reset": format_duration(bucket.seconds_until(bucket.capacity)),
                }
                lines += [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items()]
        return lines

    def _refuse(self, kind: str, limit: str, advice: str, wait_s: float | None) -> None:
        self._rejections[self._key_id, kind] += 1
        after = f"; try again in {format_duration(wait_s)}" if wait_s is not None else ""
        message = f"Rate limit reached for this API key: at most {limit}, {advice}{after}."
        raise RateLimitError(message, retry_after_s=None if wait_s is None else math.ceil(wait_s))


class Accounts:
    """The accounts of all owners of keys that have been used: at most as many as there are keys."""

    def __init__(self, limits: Limits | None = None, clock: Clock = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, Account] = {}  # by owner
        self.rejections: Counter[tuple[str, str]] = Counter()
        """By id of the key and kind of the limit."""

    def of(self, key: ApiKey) -> Account | None:
        """The account of a valid key; None where nothing limits it."""
        if self._limits is None and not key.own_limits:
            return None
        limits = self._limits or Limits()
        limit = limits.by_digest.get(key.digest, limits.default)
        if key.own_limits:
            limit = replace(limit, **dict(key.own_limits))
        account = self._accounts.get(key.owner)
        if account is None:
            account = self._accounts[key.owner] = Account(key.id, limit, self.rejections, self._clock)
        elif account.limit != limit:
            account.apply(limit)
        return account

    def change_limits(self, limits: Limits) -> None:
        """Hold all keys to `limits` from now on."""
        self._limits = limits


def format_duration(seconds: float) -> str:
    """As OpenAI writes it: "20ms", "1.5s", "2m3s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
