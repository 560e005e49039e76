"""What `--speculative-config` says, in vLLM's words, checked and frozen. Imports no jax: both processes read it."""

from typing import Any

import msgspec

from jserve.errors import ConfigError

_REFUSED = {
    "suffix": "answers are not kept after they end; use ngram",
    "draft_model": "one engine runs one model; use ngram",
    "mtp": "the model's own layer for further tokens is not loaded; use ngram",
    "eagle": "no head is loaded beside the model; use ngram",
    "eagle3": "no head is loaded beside the model; use ngram",
    "medusa": "no head is loaded beside the model; use ngram",
}
"""Methods of vLLM that jserve lacks, and why."""
_MOST_TOKENS = 32


class SpeculativeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drafted."""

    method: str = "ngram"
    num_speculative_tokens: int = 4
    """Most tokens that are drafted for a sequence in a step."""
    prompt_lookup_max: int | None = None
    """Most tokens of a sequence's end that are looked up in what came before."""
    prompt_lookup_min: int | None = None
    """Fewest of them."""

    @property
    def lookup(self) -> tuple[int, int]:
        """Fewest and most tokens that are looked up. Where one is not set it is the other, as in vLLM; without both
        they are 5, as there.
        """
        least, most = self.prompt_lookup_min, self.prompt_lookup_max
        if least is None:
            least = most if most is not None else 5
        return least, most if most is not None else least

    def __post_init__(self) -> None:
        if self.method != "ngram":
            reason = _REFUSED.get(self.method, "the only method is ngram")
            raise ConfigError(f"--speculative-config: method {self.method!r} is not supported: {reason}")
        if not 1 <= self.num_speculative_tokens <= _MOST_TOKENS:
            raise ConfigError(
                f"--speculative-config: num_speculative_tokens is {self.num_speculative_tokens} but must be "
                f"1 to {_MOST_TOKENS}"
            )
        least, most = self.lookup
        if not 1 <= least <= most:
            raise ConfigError(
                f"--speculative-config: prompt_lookup_min is {least} and prompt_lookup_max {most}, but they must be "
                "at least 1 and in this order"
            )


def read_speculative_config(text: str) -> SpeculativeConfig:
    """The value of `--speculative-config`, a JSON object. Raises ConfigError naming what is wrong with it."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        if fields.get("method") in _REFUSED:
            return SpeculativeConfig(method=fields["method"])  # before the fields of the method are
        return msgspec.convert(fields, SpeculativeConfig)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--speculative-config is {text!r}, but that is not what it must be: {error}") from None
