"""Ollama's `options`, made into the fields of a request.

Where a request says nothing, the model's own generation_config counts, and where that says nothing too, Ollama's
defaults: temperature 0.8, top_k 40, top_p 0.9. On /v1 routes the defaults are OpenAI's, temperature 1.

Options for loading a model (num_ctx, num_gpu, num_thread, ...) change nothing: the model is loaded, with the
context that the server was started with. `num_ctx` below a prompt's length therefore drops nothing of it.
An unknown option is logged, as in Ollama; one that would change the output and cannot be honoured is refused.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from jserve.api.model.defaults import SamplingDefaults
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

_CHECKS: dict[str, Callable[[Any], bool]] = {
    _INTEGER: lambda value: abs(value) <= _MAX_INT and value == int(value),
    _FLOAT: lambda value: isinstance(value, float) or abs(value) <= _MAX_INT,
    _BOOLEAN: lambda value: isinstance(value, bool),
    _STRINGS: lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}

_MAX_SHOWN = 20
"""Unknown options, and characters of each, in the log."""

_ONLY_NEUTRAL: dict[str, float] = {"typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0}
"""Ways to sample that jserve does not have, and the values that switch them off."""


def check_options(raw: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that are set, with the types of Ollama. Raises RequestError naming one that is not."""
    raw = raw or {}
    unknown = [name[:_MAX_SHOWN] for name in raw if name not in _TYPES]
    if unknown:
        logger.warning("a request has unknown options, which have no effect: %s", unknown[:_MAX_SHOWN])
    return {name: _typed(name, kind, raw[name]) for name, kind in _TYPES.items() if raw.get(name) is not None}


def sampling_fields(options: Mapping[str, Any], model: SamplingDefaults, max_model_len: int) -> dict[str, Any]:
    """Checked options as fields of a chat or completions body. Raises RequestError for what cannot be honoured."""
    _refuse_other_samplers(options)
    defaults = model.over(OLLAMA_DEFAULTS)
    return {
        "max_tokens": _max_tokens(options.get("num_predict"), defaults, max_model_len),
        "temperature": options.get("temperature", defaults.temperature),
        "top_k": options.get("top_k", defaults.top_k),
        "top_p": options.get("top_p", defaults.top_p),
        "min_p": options.get("min_p", defaults.min_p),
        "seed": options.get("seed", defaults.seed),
        "stop": _stop(options),
        **_penalties(options, defaults, max_model_len),
    }


def _typed(name: str, kind: str, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number is not (kind in (_INTEGER, _FLOAT)) or not _CHECKS[kind](value):
        raise RequestError(f'option "{name}" must be of type {kind}', param=f"options.{name}")
    return int(value) if kind == _INTEGER else value


def _refuse_other_samplers(options: Mapping[str, Any]) -> None:
    for name, neutral in _ONLY_NEUTRAL.items():
        value = options.get(name, neutral)
        if value != neutral:
            raise RequestError(
                f'option "{name}" is {value} but this way to sample is not supported; '
                f"leave it out or set it to {neutral:g}",
                param=f"options.{name}",
            )


def _max_tokens(num_predict: int | None, defaults: SamplingDefaults, max_model_len: int) -> int | None:
    """-1 and -2 (and 0, as in Ollama) leave no limit but the context's end; absent, the model's own counts."""
    if num_predict is None:
        return defaults.max_tokens
    if num_predict > 0:
        return min(num_predict, max_model_len)
    return None if defaults.max_tokens is None else max_model_len


def _stop(options: Mapping[str, Any]) -> list[str] | None:
    if "stop" not in options:
        return None
    stop: list[str] = options["stop"]
    if len(stop) > MAX_STOP_STRINGS:
        message = f'option "stop" holds {len(stop)} strings but at most {MAX_STOP_STRINGS} are allowed'
        raise RequestError(message, param="options.stop")
    return stop


def _penalties(options: Mapping[str, Any], defaults: SamplingDefaults, max_model_len: int) -> dict[str, float]:
    """Penalties see the whole context, which is `repeat_last_n` -1; 0 switches them off, as in llama.cpp."""
    penalties = {
        "repetition_penalty": options.get("repeat_penalty", defaults.repetition_penalty),
        "presence_penalty": options.get("presence_penalty", defaults.presence_penalty),
        "frequency_penalty": options.get("frequency_penalty", defaults.frequency_penalty),
    }
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    if penalties == neutral:
        return penalties
    last_n = options.get("repeat_last_n", -1)
    if last_n == 0:
        return neutral
    if 0 < last_n < max_model_len:
        raise RequestError(
            f'option "repeat_last_n" is {last_n} but penalties here see the whole context; '
            "leave it out or set it to -1, or to 0 for no penalties",
            param="options.repeat_last_n",
        )
    if options.get("penalize_newline") is False:
        raise RequestError(
            'option "penalize_newline" is false but penalties here hold for all tokens; leave it out',
            param="options.penalize_newline",
        )
    return penalties
