"""How long a request may get, and why one that could never run is refused, in words fit for its sender."""

from dataclasses import dataclass

from jserve.protocol import Request

NO_TEXT = "this model embeds or gives labels; it does not generate text"
"""Why one that wants an answer is refused by a model for embeddings, or by a classifier."""


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """Both in tokens: what the model allows, and what all pages of the KV cache hold together."""

    max_model_len: int
    cache_tokens: int

    def max_total(self, request: Request) -> int:
        """Most tokens, prompt included, that the request may reach. The last needs no place in the cache."""
        if request.ends_with_prompt:
            return len(request.token_ids)
        if request.sampling.max_tokens is None:
            return min(self.max_model_len, self.cache_tokens + 1)
        return min(len(request.token_ids) + request.sampling.max_tokens, self.max_model_len)

    def refusal(self, request: Request) -> str | None:
        """Why the request can never run, or None."""
        num_prompt, max_tokens = len(request.token_ids), request.sampling.max_tokens
        if not num_prompt:
            return "the prompt is empty; send at least one token"
        if max_tokens is not None and max_tokens < 0:
            return f"max_tokens is {max_tokens} but must not be negative"
        if num_prompt > self.max_model_len - (not request.ends_with_prompt):
            room = "" if num_prompt > self.max_model_len else ", which leaves no room for an answer"
            return (
                f"prompt has {num_prompt:,} tokens{room} but max_model_len is {self.max_model_len:,}; "
                "shorten it or raise --max-model-len"
            )
        max_total = self.max_total(request)
        if max(max_total - 1, num_prompt) > self.cache_tokens:
            most = max(max_total, num_prompt + (not request.ends_with_prompt))
            return (
                f"prompt has {num_prompt:,} tokens and may grow to {most:,}, but the KV cache holds "
                f"{self.cache_tokens:,}; shorten it, lower max_tokens, or raise --gpu-memory-utilization"
            )
        return None
