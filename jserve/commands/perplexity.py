"""`jserve perplexity`: how well a model predicts a text, through the path that answers requests.

The text is cut into stretches, one beside the other; every token but the first of each is predicted from those of its
stretch before it. So figures compare for one tokenizer and one length, whatever the weights and the cache are in.
"""

import math
from dataclasses import dataclass

import msgspec

from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.llm import LLM
from jserve.protocol import SamplingParams


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`nats` is the sum of -ln p over `tokens` predicted tokens."""

    tokens: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def value(self) -> float:
        """e to the mean."""
        return math.exp(self.nats_per_token)

    def as_json(self) -> str:
        """One object."""
        fields = {"perplexity": self.value, "nats_per_token": self.nats_per_token, "tokens": self.tokens}
        return msgspec.json.encode(fields).decode()


def measure(config: EngineConfig, text: str, length: int) -> Perplexity:
    """Of a model that is started for it. Raises StartupError where it cannot be, or the text is too short."""
    options = msgspec.structs.asdict(config)
    return score(LLM(options.pop("model"), **options), text, length)


def score(llm: LLM, text: str, length: int) -> Perplexity:
    """Of a model that runs. Raises ConfigError where the text has no two tokens, RequestError where a stretch of
    `length` tokens is more than the model takes.
    """
    tokens = llm.tokenizer.encode(text, add_special_tokens=True)
    stretches = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    stretches = [stretch for stretch in stretches if len(stretch) > 1]
    if not stretches:
        raise ConfigError(f"the text has {len(tokens)} tokens, of which none can be predicted; give a longer one")
    return score_tokens(llm, stretches)


def score_tokens(llm: LLM, stretches: list[list[int]]) -> Perplexity:
    """Of all but the first token of each stretch."""
    outputs = llm.generate(stretches, SamplingParams(max_tokens=0, prompt_logprobs=0))
    scores = [entry.logprob for output in outputs for entry in output.prompt_logprobs or ()]
    assert len(scores) == sum(len(stretch) - 1 for stretch in stretches)
    return Perplexity(len(scores), -math.fsum(scores))
