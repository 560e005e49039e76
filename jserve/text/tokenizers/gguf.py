"""The tokenizer that a GGUF file describes, rebuilt for the `tokenizers` library.

A GGUF file holds the vocabulary, the merges or scores, and the pre-tokenizer's name. What the name means
follows the original models' `tokenizer.json`; llama.cpp (llama-vocab.cpp) implements the same rules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from jserve.checkpoint.gguf.end_tokens import control_tokens, end_tokens
from jserve.checkpoint.gguf.file import GgufFile
from jserve.errors import CheckpointError
from jserve.text.tokenizers.huggingface import set_bos_and_eos
from jserve.text.tokenizers.pre_tokenizers import MARKED, PRE_TOKENIZERS, PreTokenizer
from jserve.text.tokenizers.split_expressions import LINES
from jserve.text.tokenizers.template_files import gguf_chat_templates
from jserve.text.tokenizers.tokenizer import Tokenizer
from jserve.text.tokenizers.unigram import unigram
from jserve.text.tokenizers.wordpiece import WORDPIECE_ROLES, wordpiece

logger = logging.getLogger(__name__)

_MARK = "\u2581"
"""In place of a space."""
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_LONGEST_MERGED = 512
"""Characters of a token that merges are looked for: the time is the square of them."""
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def load_gguf_tokenizer(path: Path) -> Tokenizer:
    """Build it from the file's metadata. Raises CheckpointError where the metadata does not describe one."""
    file = GgufFile(path)
    file.close()
    return _Description(path, file.metadata).build()


@dataclass(frozen=True, slots=True)
class _Built:
    """A tokenizer without special tokens, and which stand around a text where the file does not say."""

    backend: Backend
    adds_bos: bool = False
    adds_eos: bool = False
    separators: int = 0
    """Tokens of the end between two texts that are one."""


class _Description:
    """The `tokenizer.*` keys of a file, checked."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self.tokens = self._strings("tokens")
        types = self.get("token_type")
        if types is not None and (not isinstance(types, list) or len(types) != len(self.tokens)):
            raise CheckpointError(f"{path}: tokenizer.ggml.token_type must hold one number for each token")
        self.types: list[Any] = list(types or [1] * len(self.tokens))
        for number in (*control_tokens(metadata).values(), *end_tokens(metadata)):
            if 0 <= number < len(self.types):
                self.types[number] = _CONTROL
        self.vocab = {token: number for number, token in enumerate(self.tokens)}

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}", default)

    def build(self) -> Tokenizer:
        kind = self.get("model")
        if kind == "bert":
            return self._wordpiece()
        if kind not in _BUILDERS:
            raise CheckpointError(
                f"{self.path}: tokenizer.ggml.model is {kind!r}; supported are 'bert' (WordPiece), "
                f"{', '.join(f'{name!r} ({what})' for name, (what, _) in _BUILDERS.items())}. Load the model from its "
                "Hugging Face directory"
            )
        built: _Built = _BUILDERS[kind][1](self)
        self._add_tokens(built.backend)
        special = self._special_tokens()
        set_bos_and_eos(
            built.backend,
            special.get("bos_token") if self.get("add_bos_token", built.adds_bos) else None,
            special.get("eos_token") if self.get("add_eos_token", built.adds_eos) else None,
            separators=built.separators,
        )
        return Tokenizer(
            built.backend,
            source=self.path,
            special_tokens=special,
            chat_templates=gguf_chat_templates(self.metadata),
        )

    def _strings(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            raise CheckpointError(f"{self.path} has no tokenizer: tokenizer.ggml.{name} is missing")
        return value

    def _wordpiece(self) -> Tokenizer:
        """Files have a mark before a word's first piece, where the original vocabulary has one before the others."""
        tokens = [_original_piece(token) for token in self.tokens]
        if len(set(tokens)) < len(tokens):
            raise CheckpointError(f"{self.path}: tokenizer.ggml.tokens names a token twice")
        lowercase = all(token == token.lower() for token in tokens if not _is_bracketed(token))
        backend = wordpiece(tokens, lowercase=lowercase, source=self.path)
        known = {role: token for role, token in WORDPIECE_ROLES.items() if token in set(tokens)}
        return Tokenizer(backend, source=self.path, special_tokens=known)

    def _byte_level(self) -> _Built:
        if self.get("pre") in MARKED:
            return self._marked_bpe()
        rules = self._pre_tokenizer()
        backend = Backend(self._bpe(self._merges(), ignore_merges=rules.ignores_merges))
        if rules.normalizer is not None:
            backend.normalizer = rules.normalizer()
        backend.pre_tokenizer = rules.splitter()
        backend.decoder = decoders.ByteLevel()
        # Of the encoders with such a vocabulary, RoBERTa's kin end the first text of a pair twice.
        return _Built(backend, rules.adds_bos, rules.adds_eos, separators=1 + rules.adds_eos)

    def _marked_bpe(self) -> _Built:
        """Gemma 4's: merges over text with marks in place of spaces, and bytes as a fallback."""
        unknown = self._token(self.get("unknown_token_id"))
        backend = Backend(self._bpe(self._merges(), unk_token=unknown, fuse_unk=True, byte_fallback=True))
        backend.normalizer = normalizers.Replace(" ", _MARK)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(LINES), behavior="isolated")
        backend.decoder = decoders.Sequence([decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
        return _Built(backend, adds_bos=True)

    def _unigram(self) -> _Built:
        """XLM-RoBERTa's, which llama.cpp calls T5's."""
        unknown, charsmap = self.get("unknown_token_id"), self.get("precompiled_charsmap") or []
        if not isinstance(charsmap, list) or not all(isinstance(byte, int) for byte in charsmap):
            raise CheckpointError(f"{self.path}: tokenizer.ggml.precompiled_charsmap must hold bytes")
        backend = unigram(
            list(zip(self.tokens, self._scores(), strict=True)),
            unknown=unknown if isinstance(unknown, int) else -1,
            charsmap=bytes(byte & 0xFF for byte in charsmap),
            adds_space=bool(self.get("add_space_prefix", True)),
            merges_spaces=bool(self.get("remove_extra_whitespaces", True)),
            source=self.path,
        )
        return _Built(backend, adds_eos=True, separators=2)

    def _merges(self) -> list[tuple[str, str]]:
        return [_pair(merge) for merge in self._strings("merges")]

    def _scores(self) -> list[float]:
        scores = self.get("scores")
        if not isinstance(scores, list) or len(scores) != len(self.tokens):
            raise CheckpointError(f"{self.path}: tokenizer.ggml.scores must hold one score for each token")
        return scores

    def _pre_tokenizer(self) -> PreTokenizer:
        name = self.get("pre")
        if name is None:
            logger.warning("%s names no pre-tokenizer (tokenizer.ggml.pre); taking GPT-2's", self.path)
            name = "gpt-2"
        if name not in PRE_TOKENIZERS:
            raise CheckpointError(
                f"{self.path}: pre-tokenizer {name!r} is not supported; supported are "
                f"{', '.join(sorted(PRE_TOKENIZERS))}. Load the model from its Hugging Face directory"
            )
        return PRE_TOKENIZERS[name]

    def _sentencepiece(self) -> _Built:
        """As transformers builds LlamaTokenizer: BPE whose merges follow from scores, bytes as a fallback."""
        unknown = self._token(self.get("unknown_token_id"))
        merges = _merges_from_scores(self.vocab, self._scores())
        backend = Backend(self._bpe(merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
        adds_space = bool(self.get("add_space_prefix", True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_MARK, prepend_scheme="first" if adds_space else "never", split=False
        )
        steps = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
        if adds_space:
            steps.append(decoders.Strip(content=" ", left=1, right=0))
        backend.decoder = decoders.Sequence(steps)
        return _Built(backend, adds_bos=True)

    def _bpe(self, merges: list[tuple[str, str]], **options: Any) -> models.BPE:
        for left, right in merges:
            # The library panics where a merge does not fit.
            if not (left in self.vocab and right in self.vocab and left + right in self.vocab):
                raise CheckpointError(
                    f"{self.path}: tokenizer.ggml.merges joins {left!r} and {right!r}, which are not tokens"
                )
        return models.BPE(vocab=self.vocab, merges=merges, **options)

    def _add_tokens(self, backend: Backend) -> None:
        """Control tokens are special, user-defined ones are only matched whole."""
        pairs = list(zip(self.tokens, self.types, strict=True))
        special = [token for token, kind in pairs if kind in (_CONTROL, _UNKNOWN)]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        whole = [token for token, kind in pairs if kind == _USER_DEFINED]
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in whole])

    def _special_tokens(self) -> dict[str, str]:
        tokens = {role: self._token(self.get(f"{name}_token_id")) for role, name in _ROLES.items()}
        return {role: token for role, token in tokens.items() if token is not None}

    def _token(self, number: Any) -> str | None:
        if number is None:
            return None
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            raise CheckpointError(
                f"{self.path}: its metadata names token {number!r} but there are {len(self.tokens):,} tokens"
            )
        return self.tokens[number]


_BUILDERS: dict[Any, tuple[str, Callable[[_Description], _Built]]] = {
    "gpt2": ("byte-level BPE", _Description._byte_level),
    "llama": ("sentencepiece", _Description._sentencepiece),
    "t5": ("sentencepiece's unigrams", _Description._unigram),
    "gemma4": ("BPE over marked spaces", _Description._marked_bpe),
}
"""By `tokenizer.ggml.model`."""


def _is_bracketed(token: str) -> bool:
    return token.startswith("[") and token.endswith("]")


def _original_piece(token: str) -> str:
    """The token as BERT's vocabulary spells it (`BertModel.set_vocab` of llama.cpp's converter, read backwards)."""
    if _is_bracketed(token):
        return token
    return token[1:] if token.startswith("\u2581") else f"##{token}"


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _merges_from_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, best score first (transformers' `generate_merges`)."""
    merges = []
    for token, number in vocab.items():
        if len(token) > _LONGEST_MERGED:
            continue
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in parts if left in vocab and right in vocab]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += [(scores[number], len(left), len(right), left, right) for left, right in known]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in merges]
