"""A model folder whose device work costs next to nothing, for measuring everything around the device.

One llama layer, 64 wide, random weights, and a trained byte-level BPE vocabulary. The output head is arranged so
that the greedy answer walks through the whole vocabulary in a fixed shuffled order before it repeats: text as varied
as real text, with characters of several tokens, and the same from every engine.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from jserve.commands.bench.prompts import WORDS_FILE

SPECIAL_TOKENS = ("<|end|>", "<|start|>")
VOCAB_SIZE = 1024
HIDDEN, HEADS, HEAD_DIM, INNER = 64, 2, 32, 128
CONTEXT = 65_536
_SPLIT_CHARACTERS = ("🙂", "é", "Ж", "中")
"""Characters of four, two, two and three bytes. All bytes differ, and each is a token of its own."""
_SAMPLES = (
    "def f(x):\n    return x + 1\n\n",
    "naïve café, 10,500 — “quotes” … über façade",
    "Привет, мир! Как дела?",
    "你好世界。日本語のテキスト",
    "{'a': [1, 2, 3], 'b': \"c\"}",
)
_CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
"""Ends with the content, so that streams begin at different places of the walk."""


def write_tiny_model(folder: Path, *, seed: int = 0) -> None:
    """Write config, tokenizer and weights in Hugging Face's layout; the same `seed` gives the same files."""
    tokenizer = write_tokenizer(folder)
    _write_json(folder / "config.json", _config(tokenizer.get_vocab_size()))
    save_file(_weights(tokenizer, seed), folder / "model.safetensors", metadata={"format": "pt"})


def write_random_model(folder: Path, fields: dict[str, Any], *, seed: int = 0) -> None:
    """Write a model of any llama's shape but for its vocabulary, with weights in bfloat16 that mean nothing."""
    import ml_dtypes

    tokenizer = write_tokenizer(folder)
    config = {**_config(tokenizer.get_vocab_size()), **fields, "vocab_size": tokenizer.get_vocab_size()}
    config |= {"head_dim": config["hidden_size"] // config["num_attention_heads"], "torch_dtype": "bfloat16"}
    _write_json(folder / "config.json", config)
    rng = np.random.default_rng(seed)
    pool = (rng.standard_normal(1 << 22, np.float32) * np.float32(0.02)).astype(ml_dtypes.bfloat16)
    heads, kv_heads, dim = (config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    E, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    layer = {
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (E,)),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (F, E)),
        **dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (kv_heads * dim, E)),
        "self_attn.q_proj": (heads * dim, E),
        "self_attn.o_proj": (E, heads * dim),
        "mlp.down_proj": (E, F),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (V, E), "lm_head": (V, E), "model.norm": (E,)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    # Drawn once and used from many places: drawing 10^9 numbers takes half a minute.
    weights = {
        f"{name}.weight": np.resize(np.roll(pool, int(rng.integers(pool.size))), shape)
        if len(shape) > 1
        else np.ones(shape, ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer's files, and that of the end token."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIAL_TOKENS[0],
            "chat_template": _CHAT_TEMPLATE,
            "model_max_length": CONTEXT,
        },
    )
    _write_json(folder / "generation_config.json", {"eos_token_id": 0})
    return tokenizer


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS_FILE.read_text(), *_SAMPLES * 3], trainer)
    return tokenizer


def _config(vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }


def _weights(tokenizer: Tokenizer, seed: int) -> dict[str, np.ndarray]:
    """The layer adds little to the residual stream, so the logits are those of the last token's own vector."""
    rng = np.random.default_rng(seed)
    vocab_size = tokenizer.get_vocab_size()
    embedding = rng.standard_normal((vocab_size, HIDDEN), np.float32)
    head = np.zeros_like(embedding)
    for token, successor in enumerate(_successors(tokenizer, seed)):
        head[successor] += embedding[token]

    def small(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(0.02)

    layer = {
        "input_layernorm.weight": np.ones(HIDDEN, np.float32),
        "post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
        "self_attn.q_proj.weight": small(HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj.weight": small(HEAD_DIM, HIDDEN),
        "self_attn.v_proj.weight": small(HEAD_DIM, HIDDEN),
        "self_attn.o_proj.weight": small(HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj.weight": small(INNER, HIDDEN),
        "mlp.up_proj.weight": small(INNER, HIDDEN),
        "mlp.down_proj.weight": small(HIDDEN, INNER),
    }
    return {
        "model.embed_tokens.weight": embedding,
        **{f"model.layers.0.{name}": weight for name, weight in layer.items()},
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": head,
    }


def _successors(tokenizer: Tokenizer, seed: int) -> list[int]:
    """What follows each token: the next one of the walk, or for a token outside it some place in it."""
    rng = random.Random(seed)
    walk = _walk(tokenizer, rng)
    following = {token: walk[(place + 1) % len(walk)] for place, token in enumerate(walk)}
    return [following.get(token) or rng.choice(walk) for token in range(tokenizer.get_vocab_size())]


def _walk(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """All tokens that are text by themselves, shuffled, with characters of several tokens in between."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = tokenizer.get_vocab()
    steps = [
        [token]
        for text, token in vocabulary.items()
        if text not in SPECIAL_TOKENS and (text not in alphabet or text.isascii())
    ]
    steps.sort()
    by_byte = {_byte_of(text): vocabulary[text] for text in alphabet}
    steps += [[by_byte[byte] for byte in character.encode()] for character in _SPLIT_CHARACTERS]
    rng.shuffle(steps)
    return [token for step in steps for token in step]


def _byte_of(character: str) -> int:
    """The byte that a character of the byte-level alphabet stands for: itself where it is printable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    code = ord(character)
    return code if code < 256 else others[code - 256]


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1))
