"""BERT's tokenizer from a list of its tokens: words at white space and punctuation, and pieces of words after `##`.

As transformers' BertTokenizer builds it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from jserve.checkpoint.json_file import read_bounded
from jserve.errors import CheckpointError

VOCABULARY = "vocab.txt"
WORDPIECE_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_LIMIT = 64 << 20
"""Bytes of a vocabulary."""


def read_wordpiece(file: Path, config: Mapping[str, Any]) -> Backend:
    """From `vocab.txt`, a token a line, and `tokenizer_config.json`. Raises CheckpointError where it is damaged."""
    try:
        text = read_bounded(file, _LIMIT).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8: {error}") from None
    tokens = text.removesuffix("\n").replace("\r\n", "\n").split("\n")
    lowercase, strip = config.get("do_lower_case") is not False, config.get("strip_accents")
    return wordpiece(
        tokens,
        lowercase=lowercase,
        strip_accents=strip if isinstance(strip, bool) else None,
        splits_chinese=config.get("tokenize_chinese_chars") is not False,
        source=file,
    )


def wordpiece(
    tokens: Sequence[str],
    *,
    lowercase: bool,
    source: Path,
    strip_accents: bool | None = None,
    splits_chinese: bool = True,
) -> Backend:
    """With [CLS] before a text and [SEP] after it. Accents are stripped where text is made lower case, if None."""
    vocab = {token: number for number, token in enumerate(tokens)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocab]
    if missing:
        raise CheckpointError(f"{source} is not the vocabulary of a BERT model: it has no token {missing[0]}")
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=splits_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.add_special_tokens([token for token in WORDPIECE_ROLES.values() if token in vocab])
    return backend
