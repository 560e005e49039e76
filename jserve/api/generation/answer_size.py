"""How many logprobs one request may ask for: nothing else makes an answer so large at so little cost to the client."""

from jserve.api.generation.request import GenerationRequest
from jserve.api.model.lengths import clamp_max_tokens
from jserve.errors import FieldPath, RequestError

MAX_LOGPROBS = 1 << 22
"""In one answer. One is 12 bytes while it is kept, about 65 in the body: 270 MB in the largest."""


def check_answer_size(request: GenerationRequest, max_model_len: int, cap: int | None) -> None:
    """Raise RequestError where the answer could hold more than `MAX_LOGPROBS`. `cap` is the model's on any output."""
    sampling = request.sampling
    lengths = [len(prompt.token_ids) for prompt in request.prompts]
    num_choices = sampling.n * len(lengths)
    total = 0
    if sampling.prompt_logprobs is not None:
        per_token = 1 + sampling.prompt_logprobs
        total = sampling.n * sum(lengths) * per_token
        _check(total, f"{num_choices} choices times the prompt's tokens times {per_token} `prompt_logprobs`")
    if sampling.logprobs is None or request.pooling:
        return
    per_token = 1 + (len(sampling.logprob_token_ids) or sampling.logprobs)
    limits = [clamp_max_tokens(sampling.max_tokens, length, max_model_len, cap) for length in lengths]
    total += sampling.n * sum(limits) * per_token
    fits = MAX_LOGPROBS // (num_choices * per_token)
    _check(
        total,
        f"{num_choices} choices times up to {max(limits)} tokens times {per_token} logprobs of each token",
        max_tokens=fits,
    )


def _check(total: int, product: str, *, max_tokens: int = 0) -> None:
    """`max_tokens` would do with everything else as it is; 0 where none would."""
    if total <= MAX_LOGPROBS:
        return
    message = (
        f"this request asks for {total} logprobs ({product}), and one may ask for {MAX_LOGPROBS}; ask for fewer "
        "choices, tokens or alternatives"
    )
    if not max_tokens:
        raise RequestError(message, param="logprobs")
    remedy = ("; with these choices and logprobs `", FieldPath("max_tokens"), f"` can be {max_tokens}")
    raise RequestError(message, *remedy, param="max_tokens")
