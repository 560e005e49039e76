"""Default sampling of a model: of its `generation_config.json` as vLLM reads it, or of an Ollama manifest."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jserve.errors import CheckpointError

logger = logging.getLogger(__name__)

_PENALTIES = {"repetition_penalty", "presence_penalty", "frequency_penalty"}
OLLAMA_WINDOW = 64
"""Ollama's `repeat_last_n`: how many of the newest tokens penalties look at."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


_GENERATION_CONFIG: dict[str, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    "temperature": ("a number from 0 on", lambda value: _is_number(value) and value >= 0, float),
    "top_p": ("a number above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1, float),
    "top_k": ("a whole number from -1 on", lambda value: _is_whole(value) and value >= -1, int),
    "min_p": ("a number between 0 and 1", lambda value: _is_number(value) and 0 <= value <= 1, float),
    "repetition_penalty": ("a number above 0", lambda value: _is_number(value) and value > 0, float),
    "max_new_tokens": ("a whole number above 0", lambda value: _is_whole(value) and value > 0, int),
}
"""A field: what its value must be, in words and as a check, and how it is read."""

_OLLAMA: dict[str, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    "temperature": ("temperature", _is_number, float),
    "top_p": ("top_p", _is_number, float),
    "top_k": ("top_k", _is_whole, int),
    "min_p": ("min_p", _is_number, float),
    "repeat_penalty": ("repetition_penalty", _is_number, float),
    "presence_penalty": ("presence_penalty", _is_number, float),
    "frequency_penalty": ("frequency_penalty", _is_number, float),
    "seed": ("seed", _is_whole, lambda value: None if value == -1 else int(value)),
    "stop": ("stop", _is_strings, tuple),
    "repeat_last_n": ("penalty_window", _is_whole, int),
    "num_predict": ("max_tokens", _is_whole, lambda value: int(value) if value > 0 else None),
}
"""Ollama's name of a parameter: the field here, what its value must be, and how it is read."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request gets where it says nothing. `max_new_tokens` caps every request's output, `max_tokens` does
    not cap one that asks for more.

    `set_fields` names the fields that the model's configuration sets, be it to the neutral value.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    penalty_window: int | None = None
    """A Modelfile's `repeat_last_n`, which counts on Ollama's routes; on OpenAI's, penalties look at everything."""
    set_fields: frozenset[str] = frozenset()

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any], *, source: Path | str) -> "SamplingDefaults":
        """The fields that are there and not null; the rest stays neutral.

        Raises CheckpointError where one has a value that it cannot have: each request would be refused for it.
        """
        known: dict[str, Any] = {}
        for name, (must_be, fits, read) in _GENERATION_CONFIG.items():
            value = raw.get(name)
            if value is None:
                continue
            if not fits(value):
                raise CheckpointError(
                    f"{source}: {name} is {str(value)[:100]!r} but must be {must_be}; mend the file, or start with "
                    "--generation-config vllm, which leaves it out"
                )
            known[name] = read(value)
        return cls(**known, set_fields=frozenset(known))

    @classmethod
    def from_ollama(cls, parameters: Mapping[str, Any], *, source: str) -> "SamplingDefaults":
        """The parameters of a Modelfile. Those that are not about sampling have flags of their own, and are named.

        Raises CheckpointError where one has a value that it cannot have.
        """
        known: dict[str, Any] = {}
        for name, value in parameters.items():
            if name not in _OLLAMA:
                logger.info("%s: parameter %s %s has no effect here; see --help", source, name, value)
                continue
            field, fits, read = _OLLAMA[name]
            if not fits(value):
                raise CheckpointError(f"{source}: parameter {name} is {str(value)[:100]!r}, which it cannot be")
            known[field] = read(value)
        if known.keys() & _PENALTIES:
            known.setdefault("penalty_window", OLLAMA_WINDOW)
        return cls(**known, set_fields=frozenset(known))

    def over(self, base: "SamplingDefaults") -> "SamplingDefaults":
        """`base` with what the model's configuration sets."""
        return replace(
            base,
            **{name: getattr(self, name) for name in self.set_fields},
            set_fields=self.set_fields | base.set_fields,
        )

    def describe(self) -> str:
        """The values that differ from neutral, for one log line."""
        neutral = SamplingDefaults()
        changed = [
            f"{name}={getattr(self, name)}" for name in self._names() if getattr(self, name) != getattr(neutral, name)
        ]
        return ", ".join(changed) or "neutral"

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in cls.__dataclass_fields__ if name != "set_fields"]
