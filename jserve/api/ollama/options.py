"""Ollama's `options`, made into the fields of a request.

Where a request says nothing, the model's own generation_config counts, and where that says nothing too, Ollama's
defaults: temperature 0.8, top_k 40, top_p 0.9. On /v1 routes the defaults are OpenAI's, temperature 1.

Options for loading a model (num_ctx, num_gpu, num_thread, ...) change nothing: the model is loaded, with the
context that the server was started with. `num_ctx` below a prompt's length therefore drops nothing of it.
An unknown option is logged, as in Ollama, and so is one for a way to sample that is not supported. A value out of
range is clamped, as in Ollama.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from jserve.api.model.defaults import OLLAMA_WINDOW, SamplingDefaults
from jserve.api.openai.bodies import MAX_STOP_CHARS, SamplingDialect
from jserve.errors import RequestError

logger = logging.getLogger(__name__)

OLLAMA_DEFAULTS = SamplingDefaults(temperature=0.8, top_k=40, top_p=0.9)
MAX_STOP_STRINGS = 64
"""More than OpenAI's four: Modelfiles list every marker of a template."""

_INTEGER, _FLOAT, _BOOLEAN, _STRINGS = "integer", "float32", "boolean", "array of strings"
_TYPES = {
    **dict.fromkeys(("num_predict", "top_k", "seed", "repeat_last_n", "mirostat"), _INTEGER),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "tfs_z"), _FLOAT),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), _FLOAT),
    **dict.fromkeys(("mirostat_tau", "mirostat_eta"), _FLOAT),
    "penalize_newline": _BOOLEAN,
    "stop": _STRINGS,
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep"), _INTEGER),
    "draft_num_predict": _INTEGER,
    **dict.fromkeys(("use_mmap", "use_mlock", "low_vram", "f16_kv", "numa"), _BOOLEAN),
    **dict.fromkeys(("logits_all", "vocab_only", "embedding_only"), _BOOLEAN),
}

_MAX_INT = 2**63 - 1
_MAX_FLOAT = 3.4e38

_CHECKS: dict[str, Callable[[Any], bool]] = {
    _INTEGER: lambda value: abs(value) <= _MAX_INT and value == int(value),
    _FLOAT: lambda value: -_MAX_FLOAT <= value <= _MAX_FLOAT,
    _BOOLEAN: lambda value: isinstance(value, bool),
    _STRINGS: lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}

_MAX_SHOWN = 20
"""Unknown options, and characters of each, in the log."""

_NO_EFFECT: dict[str, Any] = {"typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0, "penalize_newline": True}
"""Ways to sample that jserve does not have, as Ollama's newer engine does not, and the values that switch them off."""

_MOST = 100.0
"""Largest temperature and penalty. Beyond it nothing changes that a float32 could tell."""


def check_options(raw: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that are set, with the types of Ollama. Raises RequestError naming one that is not."""
    raw = raw or {}
    unknown = [name[:_MAX_SHOWN] for name in raw if name not in _TYPES]
    if unknown:
        logger.warning("a request has unknown options, which have no effect: %s", unknown[:_MAX_SHOWN])
    return {name: _typed(name, kind, raw[name]) for name, kind in _TYPES.items() if raw.get(name) is not None}


def sampling_fields(options: Mapping[str, Any], model: SamplingDefaults, max_model_len: int) -> dict[str, Any]:
    """Checked options as fields of a chat or completions body, in the ranges to which Ollama clamps them."""
    _log_without_effect(options)
    defaults = model.over(OLLAMA_DEFAULTS)
    return {
        "max_tokens": _max_tokens(options.get("num_predict"), defaults, max_model_len),
        "temperature": _clamped(options.get("temperature", defaults.temperature), 0.0, _MOST),
        "top_k": max(0, options.get("top_k", defaults.top_k)),
        "top_p": _clamped(options.get("top_p", defaults.top_p), 0.0, 1.0),
        "min_p": _clamped(options.get("min_p", defaults.min_p), 0.0, 1.0),
        "seed": options.get("seed", defaults.seed),
        "stop": _stop(options),
        **_penalties(options, defaults),
    }


def sampling_dialect(options: Mapping[str, Any], model: SamplingDefaults, max_model_len: int) -> SamplingDialect:
    """What Ollama's options say beyond the fields: the window of the penalties, `repeat_last_n`.

    A penalty of the model's generation_config looks at everything, as transformers has it, unless the request or
    the Modelfile says otherwise.
    """
    own = {"repeat_penalty", "presence_penalty", "frequency_penalty"} & options.keys()
    window = options.get("repeat_last_n", model.penalty_window)
    if window is None:
        window = OLLAMA_WINDOW if own else -1
    return SamplingDialect(has_ranges=False, penalty_window=window if 0 < window < max_model_len else None)


def _typed(name: str, kind: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number is not (kind in (_INTEGER, _FLOAT)) or not _CHECKS[kind](value):
        raise RequestError(f'option "{name}" must be of type {kind}', param=f"options.{name}")
    return int(value) if kind == _INTEGER else value


def _clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _log_without_effect(options: Mapping[str, Any]) -> None:
    unused = [name for name, neutral in _NO_EFFECT.items() if options.get(name, neutral) != neutral]
    if unused:
        logger.warning("a request has options for ways to sample that are not supported; no effect: %s", unused)


def _max_tokens(num_predict: int | None, defaults: SamplingDefaults, max_model_len: int) -> int | None:
    """-1 and -2 (and 0, as in Ollama) leave no limit but the context's end; absent, the model's own counts."""
    if num_predict is None:
        return defaults.max_tokens
    if num_predict > 0:
        return min(num_predict, max_model_len)
    return None if defaults.max_tokens is None else max_model_len


def _stop(options: Mapping[str, Any]) -> list[str] | None:
    """The stop strings. An empty one, which some clients send for none, would end every answer before it begins."""
    if "stop" not in options:
        return None
    stop: list[str] = [text for text in options["stop"] if text]
    if len(stop) > MAX_STOP_STRINGS:
        message = f'option "stop" holds {len(stop)} strings but at most {MAX_STOP_STRINGS} are allowed'
        raise RequestError(message, param="options.stop")
    if any(len(text) > MAX_STOP_CHARS for text in stop):
        message = f'option "stop" holds a string of more than {MAX_STOP_CHARS} characters; send shorter ones'
        raise RequestError(message, param="options.stop")
    return stop


def _penalties(options: Mapping[str, Any], defaults: SamplingDefaults) -> dict[str, float]:
    """The penalties; none where `repeat_last_n` is 0, and no repeat penalty where that is 0 or less."""
    if options.get("repeat_last_n", defaults.penalty_window) == 0:
        return {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    repeat = options.get("repeat_penalty", defaults.repetition_penalty)
    return {
        "repetition_penalty": _clamped(repeat, 1 / _MOST, _MOST) if repeat > 0 else 1.0,
        "presence_penalty": _clamped(options.get("presence_penalty", defaults.presence_penalty), -_MOST, _MOST),
        "frequency_penalty": _clamped(options.get("frequency_penalty", defaults.frequency_penalty), -_MOST, _MOST),
    }
