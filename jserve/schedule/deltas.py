"""The deltas that say more than a token: a request's first and last one, and those with log probabilities."""

from jserve.protocol import FinishReason, TokenDelta, TokenLogprobs
from jserve.schedule.embedding import pooled_vector
from jserve.schedule.plan import ScheduledChunk
from jserve.schedule.sequence import Sequence


def error_delta(request_id: str, error: str, *, is_refusal: bool, num_preemptions: int = 0) -> TokenDelta:
    """The last delta of a request that cannot go on, or could never run."""
    return TokenDelta(
        request_id, [], finish_reason="error", num_preemptions=num_preemptions, error=error, is_refusal=is_refusal
    )


def refusal(request_id: str, error: str) -> TokenDelta:
    """The only delta of a request that could never run."""
    return error_delta(request_id, error, is_refusal=True)


def token_delta(
    chunk: ScheduledChunk, token: int, reason: FinishReason | None, logprob: TokenLogprobs | None
) -> TokenDelta:
    """The delta of the token that follows `chunk`, with all that is said once."""
    sequence = chunk.sequence
    is_first = chunk.output_index == 0
    return TokenDelta(
        sequence.request.request_id,
        [token],
        finish_reason=reason,
        stop_reason=token if reason == "stop" and token not in sequence.eos_ids else None,
        logprobs=None if logprob is None else [logprob],
        num_cached_tokens=sequence.num_cached if is_first else 0,
        num_preemptions=sequence.num_preemptions,
        scheduled_at=sequence.scheduled_at if is_first else 0.0,
        prompt_logprobs=sequence.scores() if is_first else None,
    )


def prompt_delta(sequence: Sequence) -> TokenDelta:
    """The only delta of a request that generates nothing, whose prompt has been computed."""
    request = sequence.request
    return TokenDelta(
        request.request_id,
        [],
        finish_reason="stop" if request.pooling else "length",
        num_cached_tokens=sequence.num_cached,
        num_preemptions=sequence.num_preemptions,
        scheduled_at=sequence.scheduled_at,
        prompt_logprobs=sequence.scores(),
        embedding=pooled_vector(sequence.hidden_sums, normalizes=request.normalizes) if request.pooling else b"",
    )
