"""What each API key may use, once read; `limits_file.py` reads it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limit:
    """What one key may use; None is without limit, and any priority."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    """Sequences: each prompt and each choice of a request is one."""
    highest_priority: int | None = 0
    """The smallest `priority` that the key may ask for: lower is earlier, and 0 the default."""
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of every key. Both maps go by the SHA-256 of a key."""

    default: Limit = field(default_factory=Limit)
    by_digest: dict[bytes, Limit] = field(default_factory=dict)
    names: dict[bytes, str] = field(default_factory=dict)
