"""Fields that would change the output and that jserve does not honour.

They are refused by name: ignoring one would answer with text that the caller did not ask for. A field that
is absent, null, or at the value that changes nothing, is accepted.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jserve.errors import RequestError

_Harmless = Callable[[Any], bool]


def _never(value: Any) -> bool:
    return False


def _is_falsy(value: Any) -> bool:
    return not value


def _is_text_only(value: Any) -> bool:
    return bool(value == ["text"])


_BOTH: dict[str, _Harmless] = {
    "use_beam_search": _is_falsy,
    "watermarking": _is_falsy,
    "logits_processors": _is_falsy,
    "vllm_xargs": _is_falsy,
    "kv_transfer_params": _is_falsy,
}
_REASONS: dict[str, str] = {
    "use_beam_search": "there is no beam search; use `n` with a temperature, and choose by logprobs",
    "best_of": "generate `n` choices and choose among them by logprobs",
    "watermarking": "answers carry no watermark",
    "logits_processors": "use logit_bias, allowed_token_ids, bad_words or structured_outputs",
    "vllm_xargs": "they are arguments of vLLM's plugins",
    "kv_transfer_params": "prompts are computed where they are answered",
    "prompt_embeds": "send text or token ids",
    "audio": "answers are text",
    "modalities": 'answers are text, so only ["text"] is possible',
    "web_search_options": "this server does not search; offer a tool instead",
    "moderation": "this server moderates nothing",
    "mm_processor_kwargs": "messages are text",
    "media_io_kwargs": "messages are text",
}
"""Why a field is refused for good, or what to do instead."""
_CHAT: dict[str, _Harmless] = {
    "audio": _never,
    "moderation": _never,
    "modalities": _is_text_only,
    "web_search_options": _never,
    "mm_processor_kwargs": _is_falsy,
    "media_io_kwargs": _is_falsy,
}
_COMPLETION: dict[str, _Harmless] = {"prompt_embeds": _never}


def refuse_unsupported_chat_fields(extra: Mapping[str, Any]) -> None:
    """Raise RequestError for the first field of `extra` that chat does not implement."""
    _refuse(extra, _BOTH | _CHAT)


def refuse_unsupported_completion_fields(extra: Mapping[str, Any], n: int) -> None:
    """Raise RequestError for the first field of `extra` that completions do not implement."""
    if (best_of := extra.get("best_of")) is not None and best_of not in (1, n):
        raise RequestError(f"`best_of` other than `n` is not supported: {_REASONS['best_of']}.", param="best_of")
    if extra.get("suffix"):
        raise RequestError("suffix is only supported for models with FIM completion rendering", param="suffix")
    _refuse(extra, _BOTH | _COMPLETION)


def _refuse(extra: Mapping[str, Any], fields: Mapping[str, _Harmless]) -> None:
    for name, value in extra.items():
        is_harmless = fields.get(name)
        if value is None or is_harmless is None or is_harmless(value):
            continue
        if name in _REASONS:
            raise RequestError(f"`{name}` is not supported: {_REASONS[name]}.", param=name)
        raise RequestError(
            f"`{name}` is not supported yet; leave it out. (It would change the output, so it is not ignored.)",
            param=name,
        )
