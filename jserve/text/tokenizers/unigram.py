"""Sentencepiece's unigram models from a list of pieces with their log probabilities (Kudo 2018), as XLM-RoBERTa has it.

As transformers' XLMRobertaTokenizer builds it.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from jserve.errors import CheckpointError
from jserve.text.tokenizers.huggingface import is_library_failure

_MARK = "\u2581"


def unigram(
    pieces: Sequence[tuple[str, float]],
    *,
    unknown: int,
    charsmap: bytes,
    adds_space: bool,
    merges_spaces: bool,
    source: Path,
) -> Backend:
    """`charsmap` is sentencepiece's compiled normalization, empty for none; `adds_space` marks the first word like any
    other. Raises CheckpointError where the pieces or the map are damaged.
    """
    if not 0 <= unknown < len(pieces):
        raise CheckpointError(f"{source}: a unigram tokenizer needs an unknown token, but it names {unknown!r}")
    try:
        backend = Backend(models.Unigram(list(pieces), unknown, byte_fallback=False))
        if charsmap:
            backend.normalizer = normalizers.Precompiled(charsmap)
    except BaseException as error:
        if not is_library_failure(error):
            raise
        raise CheckpointError(f"{source}: its unigram tokenizer is damaged: {error}") from None
    scheme = "always" if adds_space else "never"
    words = [pre_tokenizers.WhitespaceSplit()] if merges_spaces else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, pre_tokenizers.Metaspace(_MARK, prepend_scheme=scheme)])
    backend.decoder = decoders.Metaspace(_MARK, prepend_scheme=scheme)
    return backend
