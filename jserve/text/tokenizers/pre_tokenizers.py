"""How byte-level vocabularies cut text before merging, by the name that GGUF files carry.

The expressions are those of the original models' `tokenizer.json`, as far as llama.cpp's llama-vocab.cpp quotes them
beside its own; the names group as there. A name stands here only where both are known to agree.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from jserve.text.tokenizers import split_expressions as cut

Splitter = pre_tokenizers.PreTokenizer


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """`ignores_merges`: a piece that is a token is taken whole, whatever the merges say."""

    splitter: Callable[[], Splitter]
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    ignores_merges: bool = False
    adds_bos: bool = False
    """Whether a text begins with BOS where the file does not say."""
    adds_eos: bool = False
    """Whether it ends with EOS then."""


def _rules(
    *expressions: str,
    nfc: bool = False,
    ignores_merges: bool = False,
    adds_bos: bool = False,
) -> PreTokenizer:
    """Cut by each of the expressions in turn."""

    def splitter() -> Splitter:
        splits = (pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions)
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return PreTokenizer(splitter, normalizers.NFC if nfc else None, ignores_merges, adds_bos)


def _gpt2() -> Splitter:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_gpt2() -> Splitter:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _falcon() -> Splitter:
    """Three digits at a time from the left."""
    triples = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated")
    runs = pre_tokenizers.Digits(individual_digits=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), _gpt2(), runs, triples])


def _named(rules: PreTokenizer, *names: str) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names, rules)


PRE_TOKENIZERS = {
    **_named(PreTokenizer(_gpt2), "default", "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
    **_named(PreTokenizer(_gpt2), "a.x-4.0", "exaone4", "gigachat", "granite-docling", "jais", "mellum", "trillion"),
    **_named(PreTokenizer(_gpt2, normalizers.NFC), "modern-bert", "mpt", "olmo"),
    **_named(PreTokenizer(_gpt2, adds_bos=True, adds_eos=True), "jina-v1-en", "jina-v2-code", "roberta-bpe"),
    **_named(PreTokenizer(_digits_then_gpt2), "codeshell", "command-r", "exaone", "mellum2", "minerva-7b", "refact"),
    **_named(PreTokenizer(_digits_then_gpt2), "smollm", "starcoder"),
    **_named(PreTokenizer(_falcon), "falcon"),
    **_named(_rules(cut.LLAMA3, ignores_merges=True, adds_bos=True), "llama-bpe", "llama3", "llama-v3", "falcon3"),
    **_named(_rules(cut.LLAMA3, ignores_merges=True, adds_bos=True), "falcon-h1", "lfm2", "midm-2.0", "pixtral"),
    **_named(_rules(cut.LLAMA3, ignores_merges=True, adds_bos=True), "jina-v5-nano"),
    **_named(_rules(cut.LLAMA3, ignores_merges=True), "glm4", "glm5"),
    **_named(_rules(cut.LLAMA3), "chatglm-bpe", "dbrx", "smaug-bpe"),
    **_named(_rules(cut.QWEN2, nfc=True), "qwen2", "deepseek-r1-qwen", "f2llmv2"),
    **_named(_rules(cut.QWEN2), "grok-2", "hunyuan", "kormo", "megrez", "solar-open", "stablelm2"),
    **_named(
        _rules(cut.DEEPSEEK3, cut.DEEPSEEK3_CJK, cut.DEEPSEEK3_WORDS), "deepseek-v3", "hunyuan-dense", "joyai-llm"
    ),
    **_named(_rules(cut.O200K), "gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie"),
    **_named(_rules(cut.BLOOM), "bloom", "gpt3-finnish", "poro-chat"),
    **_named(_rules(cut.BAILING), "bailingmoe", "bailingmoe2", "llada-moe"),
    **_named(_rules(cut.GROUPED_DIGITS, cut.O200K), "cohere2moe", "tiny_aya"),
    "afmoe": _rules(cut.AFMOE_DIGITS, cut.AFMOE_SCRIPTS, cut.DEEPSEEK3_WORDS),
    "chameleon": _rules(*cut.CHAMELEON, adds_bos=True),
    "deepseek-coder": _rules(*cut.DEEPSEEK_CODER),
    "deepseek-llm": _rules(*cut.DEEPSEEK_LLM),
    "exaone-moe": _rules(cut.EXAONE_MOE),
    "granite-embed-multi-97m": _rules(cut.O200K, ignores_merges=True),
    "hy_v4": _rules(cut.DEEPSEEK3, cut.DEEPSEEK3_CJK, cut.DEEPSEEK3_WORDS),
    "jais-2": _rules(cut.JAIS2),
    "kimi-k2": _rules(cut.KIMI_K2),
    "laguna": _rules(cut.LINES, cut.QWEN2),
    "minicpm5": _rules(cut.THREE_DIGITS, cut.MINICPM5, ignores_merges=True),
    "qwen35": _rules(cut.QWEN35),
    "seed-coder": _rules(cut.SEED_CODER),
    "spark2_5": _rules(cut.THREE_DIGITS, cut.DEEPSEEK3_CJK, cut.SPARK, cut.DIGIT),
    "superbpe": _rules(*cut.SUPERBPE),
    "tekken": _rules(cut.TEKKEN, ignores_merges=True, adds_bos=True),
    "ufakzeka": _rules(cut.UFAKZEKA),
    "viking": _rules(cut.BLOOM, cut.DIGIT),
    "youtu": _rules(cut.YOUTU_SCRIPTS, cut.YOUTU, ignores_merges=True),
}
MARKED = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")
"""Names of vocabularies that are not of bytes: spaces are marked, as sentencepiece does it."""
