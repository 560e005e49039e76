"""The tokenizer of a Hugging Face directory.

`transformers.AutoTokenizer` is the reference. Where it uses `tokenizer.json` as it stands, so does this
module, with the changes that `tokenizer_config.json` asks for; that takes 0.1 s, and importing transformers
5 s where torch is installed. A WordPiece tokenizer is made here too, from `vocab.txt` where there is nothing else.
Any other repository (sentencepiece, above all) goes through AutoTokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

from jserve.checkpoint.json_file import read_json, refuse_pointer
from jserve.config.fields import Fields
from jserve.errors import CheckpointError
from jserve.text.tokenizers.template_files import find_chat_templates
from jserve.text.tokenizers.tokenizer import Tokenizer
from jserve.text.tokenizers.wordpiece import VOCABULARY, WORDPIECE_ROLES, read_wordpiece

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_VERBATIM_CLASSES = frozenset({"PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"})
TEKKEN = "tekken.json"
_TEKKEN_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""What Mistral's own file names no roles for; its library puts `<s>` before every text (mistral-common, tekken.py)."""
_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def load_huggingface_tokenizer(directory: Path) -> Tokenizer:
    """Load it. Raises CheckpointError where the directory has no tokenizer or a damaged one."""
    config = read_tokenizer_config(directory)
    file = directory / "tokenizer.json"
    if file.exists():
        backend = _read_backend(file)
        if _is_used_verbatim(backend, config):
            _apply_config(backend, config)
            return _wrap(backend, directory, config)
    elif (directory / VOCABULARY).exists():
        return _wrap(read_wordpiece(directory / VOCABULARY, config), directory, WORDPIECE_ROLES | config)
    elif not (directory / "config.json").exists():  # all else would be said of something that is no model
        raise CheckpointError(
            f"{directory} has no config.json; --model takes a directory in Hugging Face format or a .gguf file"
        )
    elif not _has_other_tokenizer(directory):
        raise CheckpointError(
            f"{directory} has no tokenizer: neither tokenizer.json nor tokenizer.model, vocab.json or vocab.txt; "
            "copy the model's tokenizer files into it"
        )
    return _load_with_transformers(directory, config)


def special_token_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Role to token, with the roles that `extra_special_tokens` names itself: a template may use any of them.

    A configuration writes a token as a string or as an object with its content.
    """
    extra = config.get("extra_special_tokens")
    own = extra if isinstance(extra, dict) else {}
    texts = {role: _content(token) for role, token in own.items()} | {
        role: _content(config.get(role)) for role in ROLES
    }
    return {role: text for role, text in texts.items() if text is not None}


def is_library_failure(error: BaseException) -> bool:
    """Whether the Rust library failed: a panic there is a BaseException but no reason to leave."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def set_bos_and_eos(backend: Backend, bos: str | None, eos: str | None, *, separators: int = 0) -> None:
    """Make `add_special_tokens` put these tokens around a text; None leaves that side bare. Between two texts that are
    one stand so many `separators`, each the token of the end.
    """
    special = [(token, backend.token_to_id(token)) for token in (bos, eos) if token is not None]
    first, last = bos and f"{bos}:0", eos and f"{eos}:0"
    backend.post_processor = TemplateProcessing(
        single=" ".join(filter(None, [first, "$A:0", last])),
        pair=" ".join(filter(None, [first, "$A:0", *[last] * separators, "$B:0", last])),
        special_tokens=special,
    )


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with what the older `special_tokens_map.json` adds to it; {} where neither is there.

    Raises CheckpointError where a field that names tokens does not.
    """
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).exists():
            config |= read_json(directory / name)
    _check_tokens(Fields(config, directory / "tokenizer_config.json"))
    return config


def _check_tokens(fields: Fields) -> None:
    for role in ROLES:
        token = fields.get(role)
        if token is not None and token is not False and _content(token) is None:
            raise fields.unlike(role, "a token: text, or an object with its content")
    for number, entry in fields.dictionary("added_tokens_decoder").items():
        if not number.isdecimal() or _content(entry) is None or not isinstance(entry, dict):
            raise fields.wrong("added_tokens_decoder", f"has {number!r}: {entry!r} but must map ids to tokens")
    extra = fields.get("extra_special_tokens") or []
    listed = list(extra.values()) if isinstance(extra, dict) else extra
    for name, tokens in (
        ("additional_special_tokens", fields.get("additional_special_tokens") or []),
        ("extra_special_tokens", listed),
    ):
        if not isinstance(tokens, list) or any(_content(token) is None for token in tokens):
            raise fields.unlike(name, "tokens")
    fields.text("tokenizer_class", default="")


def _read_backend(file: Path) -> Backend:
    with file.open("rb") as stream:
        refuse_pointer(file, stream.read(64))
    try:
        backend = Backend.from_file(str(file))
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        if not is_library_failure(error):
            raise
        raise CheckpointError(f"{file} is damaged or not a tokenizer: {error}") from None
    # A file may carry the lengths of its training; a server must neither cut nor pad a prompt.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _is_used_verbatim(backend: Backend, config: Mapping[str, Any]) -> bool:
    """Whether transformers leaves the file's tokenizer as it is.

    Model classes such as LlamaTokenizer rebuild a sentencepiece tokenizer from its vocabulary with rules of
    their own. A byte-level file is always taken as it stands: there, classes such as GPT2Tokenizer would only
    lose a pre-tokenizer that the model was trained with (SmolLM2's digits). So is WordPiece, whose rules the file has.
    """
    if config.get("tokenizer_class") in _VERBATIM_CLASSES or isinstance(backend.model, WordPiece):
        return True
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    return decoder.get("type") == "ByteLevel"


def _apply_config(backend: Backend, config: Mapping[str, Any]) -> None:
    """What transformers' TokenizersBackend does after it has read the file.

    `add_bos_token` is not looked at: with a `tokenizer.json` only that file's own post-processor counts.
    """
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    entries = sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0]))
    tokens = [_added_token(entry) for _, entry in entries]
    backend.add_tokens([token for token in tokens if repr(token) not in known])
    specials = [
        *(config.get(role) for role in ROLES),
        *(config.get("additional_special_tokens") or ()),
        *_extra_special_tokens(config),
    ]
    backend.add_special_tokens([_added_token(token) for token in specials if _content(token)])


def _extra_special_tokens(config: Mapping[str, Any]) -> list[Any]:
    extra = config.get("extra_special_tokens") or ()
    return list(extra.values()) if isinstance(extra, dict) else list(extra)


def _added_token(entry: Any) -> AddedToken:
    if isinstance(entry, str):
        return AddedToken(entry, special=True, normalized=False)
    flags = {name: bool(entry.get(name)) for name in _ADDED_TOKEN_FLAGS}
    return AddedToken(entry["content"], **flags)


def _content(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _wrap(backend: Backend, directory: Path, config: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer(
        backend,
        source=directory,
        special_tokens=special_token_texts(config),
        chat_templates=find_chat_templates(directory, config),
    )


def _has_other_tokenizer(directory: Path) -> bool:
    names = (*_SENTENCEPIECE_FILES, "vocab.json", TEKKEN, "tiktoken.model")
    return any((directory / name).exists() for name in names)


def _is_tekken_alone(directory: Path) -> bool:
    """Whether Mistral's own file is all that says how text becomes tokens."""
    others = ("tokenizer.json", "vocab.json", *_SENTENCEPIECE_FILES)
    return (directory / TEKKEN).exists() and not any((directory / name).exists() for name in others)


def _load_with_transformers(directory: Path, config: dict[str, Any]) -> Tokenizer:
    try:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a foreign repository can provoke
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{directory}: transformers cannot load its tokenizer: {first}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise CheckpointError(
            f"{directory}: its tokenizer class {type(loaded).__name__} has no fast version; add a tokenizer.json"
        )
    backend.no_truncation()
    backend.no_padding()
    roles = {role: str(token) for role in ROLES if (token := getattr(loaded, role, None)) is not None}
    if _is_tekken_alone(directory):
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        roles = {role: token for role, token in _TEKKEN_ROLES.items() if token in known} | roles
        set_bos_and_eos(backend, roles.get("bos_token"), None)
    return _wrap(backend, directory, config | roles)
