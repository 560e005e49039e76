"""Small tokenizers of each kind, trained on the samples, in the files that real models have."""

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from jserve.text.tokenizers.pre_tokenizers import PRE_TOKENIZERS

SAMPLES = [
    "The quick brown fox jumps over the lazy dog; it's 10,500 metres, isn't it? WE'LL SEE.",
    "def fib(n):\n    return n if n < 2 else fib(n-1) + fib(n-2)\n\n\n\tx  =  3  # done\r\n",
    "héllo wörld, naïve café — “quotes” … ½ ² ①",
    "你好\uff0c世界。日本語のテキスト、한국어 문장입니다.",
    "Привет, мир! مرحبا بالعالم १२३ ٤٥٦ ไทย",
    "👍 👨‍👩‍👧‍👦 🇫🇷 🙂🙂🙂 e\u0301 \u200b\ufeff",
    "   leading and trailing   ",
    "  ",
    "\n",
    "",
    "a<|im_start|>user\nhi <|im_end|><|im_start|> <|im_end|>\n",
    "<s>text</s> </s><s> [INST] x [/INST]",
    "think <think>hard</think> <tool_call>\n{}",
    "don't DON'T I'm you'RE 12345678901 3.14159 1e-5",
    "\u2581 <0x0A> <unk>",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_byte_level(pre: str, size: int = 600) -> Tokenizer:
    """Byte-level BPE with the pre-tokenizer that GGUF files call `pre`."""
    backend = Tokenizer(models.BPE(ignore_merges=PRE_TOKENIZERS[pre].ignores_merges))
    backend.pre_tokenizer = PRE_TOKENIZERS[pre].splitter()
    if PRE_TOKENIZERS[pre].normalizer is not None:
        backend.normalizer = PRE_TOKENIZERS[pre].normalizer()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SAMPLES * 3, trainer)
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return backend


def save_directory(path: Path, backend: Tokenizer | None, config: dict[str, Any], model_type: str) -> Path:
    """A Hugging Face directory as far as tokenizers look at it."""
    path.mkdir(parents=True, exist_ok=True)
    if backend is not None:
        backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return path


def save_byte_level_gguf(path: Path, backend: Tokenizer, pre: str | None, **metadata: Any) -> Path:
    """The same tokenizer in a GGUF file without tensors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    vocab = backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=lambda token: vocab[token])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    kinds = {**dict.fromkeys(SPECIAL, 3), "<think>": 4}
    writer.add_token_types([kinds.get(token, 1) for token in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    finish(writer, metadata)
    return path


def train_sentencepiece(path: Path) -> Path:
    """A `tokenizer.model` as Llama 2 has it: BPE, bytes as a fallback."""
    import sentencepiece

    corpus = path / "corpus.txt"
    corpus.write_text("\n".join(SAMPLES * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return path / "tokenizer.model"


def save_sentencepiece_gguf(path: Path, model: Path, **metadata: Any) -> Path:
    """The same tokenizer in a GGUF file without tensors."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    numbers = range(pieces.vocab_size())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(number) for number in numbers])
    writer.add_token_scores([pieces.get_score(number) for number in numbers])
    writer.add_token_types(
        [2 if pieces.is_unknown(n) else 3 if pieces.is_control(n) else 6 if pieces.is_byte(n) else 1 for n in numbers]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer, metadata)
    return path


def finish(writer: gguf.GGUFWriter, metadata: dict[str, Any]) -> None:
    for key, value in metadata.items():
        kind = gguf.GGUFValueType.BOOL if isinstance(value, bool) else gguf.GGUFValueType.get_type(value)
        writer.add_key_value("tokenizer." + key.replace("__", "."), value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
