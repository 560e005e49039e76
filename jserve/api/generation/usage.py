"""What a request used, in the fields that OpenAI's API made common; every dialect renders from it."""

import msgspec
from msgspec import UNSET, UnsetType

from jserve.api.life import RequestLife


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Where prompt tokens came from."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """What generated tokens were for."""

    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Token counts. A prompt counts once, however many choices continue it."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET

    def before_output(self) -> "Usage":
        """The counts of a moment ago, when nothing had been generated."""
        return Usage(self.prompt_tokens, self.prompt_tokens, 0, self.prompt_tokens_details)


class RequestMetrics(msgspec.Struct, frozen=True):
    """The times of one choice, in milliseconds, under vLLM's names; None where something has not happened.

    `time_to_first_token_ms` counts from the first step that worked on the request, `queue_time_ms` until it.
    """

    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    queue_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None

    @classmethod
    def of(cls, life: RequestLife, num_output: int) -> "RequestMetrics":
        """From the times of a life, of which 0 means never."""
        between = [(life.scheduled, life.first_token), (life.first_token, life.last_token)]
        first, generation = ((end - start) * 1e3 if start and end else None for start, end in between)
        total = (first or 0.0) + (generation or 0.0)
        return cls(
            time_to_first_token_ms=first,
            generation_time_ms=generation,
            queue_time_ms=(life.scheduled - life.arrived) * 1e3 if life.scheduled else None,
            mean_itl_ms=generation / (num_output - 1) if generation is not None and num_output > 1 else None,
            tokens_per_second=num_output / total * 1e3 if total > 0 else None,
        )
