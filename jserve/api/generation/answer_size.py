"""How much one request may have the server remember and write: logprobs times tokens times choices.

One entry is the logprob of one token in one place. A request of a few bytes can ask for millions of them, and all are
kept until the answer is written, in a process that everybody shares.
"""

from collections.abc import Sequence

from jserve.errors import RequestError
from jserve.protocol import Request, SamplingParams

MAX_ENTRIES = 4_000_000
"""Of one request, about 400 bytes each: a whole context of 128k tokens with 20 alternatives is 2.8 million."""
MAX_STEP_ENTRIES = 4_096
"""Of one step of a request, written at once in about 5 us each: 128 choices with 20 alternatives are 2,688."""


def check_answer_size(requests: Sequence[Request]) -> None:
    """Raise RequestError where `requests`, the sequences of one client, ask for more logprobs than one may have."""
    of_step = sum(_per_token(request.sampling) for request in requests)
    total = sum(_num_entries(request) for request in requests)
    if of_step > MAX_STEP_ENTRIES:
        raise RequestError(
            f"{len(requests)} choices with logprobs are {of_step} logprobs per token, above the {MAX_STEP_ENTRIES} "
            "that one request may have; ask for fewer choices or fewer top_logprobs",
            param="n",
        )
    if total > MAX_ENTRIES:
        raise RequestError(
            f"this request may make {total} logprobs, above the {MAX_ENTRIES} that one may have; lower max_tokens, n "
            "or top_logprobs, or send several requests",
            param="max_tokens",
        )


def _num_entries(request: Request) -> int:
    sampling = request.sampling
    of_prompt = 0 if sampling.prompt_logprobs is None else len(request.token_ids) * (1 + sampling.prompt_logprobs)
    return of_prompt + (sampling.max_tokens or 0) * _per_token(sampling)


def _per_token(sampling: SamplingParams) -> int:
    return 0 if sampling.logprobs is None else 1 + sampling.logprobs + len(sampling.logprob_token_ids)
