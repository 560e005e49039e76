"""Default sampling of a model, from its `generation_config.json` as vLLM reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request gets where it says nothing. `max_new_tokens` caps every request's output.

    `given` names the fields that the model's configuration sets, be it to the neutral value.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    given: frozenset[str] = frozenset()

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any]) -> "SamplingDefaults":
        """The fields that are there and not null; the rest stays neutral."""
        known = {name: raw[name] for name in cls._names() if raw.get(name) is not None}
        return cls(**known, given=frozenset(known))

    def over(self, base: "SamplingDefaults") -> "SamplingDefaults":
        """`base` with what the model's configuration sets."""
        return replace(base, **{name: getattr(self, name) for name in self.given}, given=self.given)

    def describe(self) -> str:
        """The values that differ from neutral, for one log line."""
        neutral = SamplingDefaults()
        changed = [
            f"{name}={getattr(self, name)}" for name in self._names() if getattr(self, name) != getattr(neutral, name)
        ]
        return ", ".join(changed) or "neutral"

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in cls.__dataclass_fields__ if name != "given"]
