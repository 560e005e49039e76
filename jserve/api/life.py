"""The life of one sequence as the server sees it: when things happened and how many tokens there were."""

import time
from dataclasses import dataclass, field

from jserve.protocol import TokenDelta


@dataclass(slots=True)
class RequestLife:
    """Times are `time.time()`; 0 where it has not happened."""

    request_id: str
    num_prompt: int
    max_tokens: int
    arrived: float = field(default_factory=time.time)
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    ended: float = 0.0
    num_output: int = 0
    num_cached: int = 0
    num_preemptions: int = 0
    finish_reason: str = ""
    key_id: str = "anonymous"
    """Whose sequence it is, for the metrics."""

    def observe(self, delta: TokenDelta, now: float) -> float | None:
        """Record a delta. Returns the seconds since the tokens before it, None for the first."""
        self.num_preemptions += delta.num_preemptions
        if not self.first_token:
            self.scheduled = delta.scheduled_at
            self.num_cached = delta.num_cached_tokens
            self.first_token = self.last_token = now
            return None
        gap = now - self.last_token
        self.last_token = now
        return gap

    def end(self, reason: str, num_output: int) -> None:
        """Record the end of the sequence."""
        self.finish_reason = reason
        self.num_output = num_output
        self.ended = time.time()

    def describe(self) -> str:
        """One line for the log."""
        first = f"{self.first_token - self.arrived:.3f}s" if self.first_token else "never"
        return (
            f"prompt={self.num_prompt} cached={self.num_cached} output={self.num_output} "
            f"first_token={first} total={self.ended - self.arrived:.3f}s"
        )

    def fields(self) -> dict[str, object]:
        """The same for the structured log; times in seconds."""
        return {
            "sequence_id": self.request_id,
            "prompt_tokens": self.num_prompt,
            "cached_tokens": self.num_cached,
            "output_tokens": self.num_output,
            "finish_reason": self.finish_reason,
            "ttft": round(self.first_token - self.arrived, 4) if self.first_token else None,
            "total": round(self.ended - self.arrived, 4),
        }
