"""How byte-level vocabularies cut text before merging, by the name that GGUF files carry.

The expressions are those of the original models' `tokenizer.json`; the names group as in llama.cpp's
llama-vocab.cpp. A name stands here only where both are known to agree.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

Splitter = pre_tokenizers.PreTokenizer

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _SUFFIX
    + r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _SUFFIX
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """`ignores_merges`: a piece that is a token is taken whole, whatever the merges say."""

    splitter: Callable[[], Splitter]
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    ignores_merges: bool = False
    adds_bos: bool = False
    """Whether a text begins with BOS where the file does not say."""


def _by_expression(*expressions: str) -> Callable[[], Splitter]:
    """Cut by each of the expressions in turn."""
    return lambda: pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> Splitter:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_gpt2() -> Splitter:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


_GPT2_RULES = PreTokenizer(_gpt2)
_DIGITS_RULES = PreTokenizer(_digits_then_gpt2)
_LLAMA3_RULES = PreTokenizer(_by_expression(_LLAMA3), ignores_merges=True, adds_bos=True)
_TEKKEN_RULES = PreTokenizer(_by_expression(_TEKKEN), ignores_merges=True, adds_bos=True)
_QWEN2_RULES = PreTokenizer(_by_expression(_QWEN2), normalizer=normalizers.NFC)

PRE_TOKENIZERS = {
    **dict.fromkeys(("gpt-2", "default"), _GPT2_RULES),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _DIGITS_RULES),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3_RULES),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2_RULES),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer(_by_expression(_LLAMA3))),
    "deepseek-v3": PreTokenizer(_by_expression(*_DEEPSEEK3)),
    "gpt-4o": PreTokenizer(_by_expression(_O200K)),
    "olmo": PreTokenizer(_gpt2, normalizer=normalizers.NFC),
    "tekken": _TEKKEN_RULES,
}
