"""The same GGUF file in llama.cpp (the wheel `xllamacpp`): vectors, scores and token ids."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jserve.config import EngineConfig
from jserve.engine.encoder_core import EncoderCore
from jserve.protocol import Request, SamplingParams
from jserve.text.load import load_tokenizer
from jserve.text.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from tests.checkpoint.gguf.encoders_maker import ENCODERS, write_encoder
from tests.text.tokenizers.tokenizer_maker import SAMPLES, SPECIAL
from tests.worlds import make_model, start_shared

llama_cpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.slow

TEXTS = [[2, 5, 9, 17, 33, 3], [2, *(5 + index % 60 for index in range(40)), 3]]
QUERY, DOCUMENTS = "aa", ["bb ac", "cd ce cf cg"]
CLS, SEP = 2, 3
COARSE = {"gemma-embedding": 3e-3}
"""Seven layers of llama.cpp's GELU, which is a table in half precision."""


def serve(path: Path, *, ranks: bool | None = None) -> Any:
    """llama.cpp's server in this process; with `ranks` of an encoder."""
    params = llama_cpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, -1
    params.embedding = ranks is not None
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if ranks:
        params.pooling_type = llama_cpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    params.hostnames, params.port = ["127.0.0.1"], 0
    return llama_cpp.Server(params)


@pytest.mark.parametrize("case", ENCODERS)
def test_vectors_and_scores_are_llama_cpps(case: str, tmp_path: Path, executables: str) -> None:
    architecture, fields = ENCODERS[case]
    folder = make_model(tmp_path / "hf", architecture, **{"hidden_size": 64, "max_position_embeddings": 64, **fields})
    path = write_encoder(tmp_path / "m.gguf", case, folder)
    sizes: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 64}
    started = start_shared(EngineConfig(model=str(path), compile_cache_dir=executables, **sizes), early=True)
    ranks = started.classifier is not None
    tokenizer, texts = load_tokenizer(path), TEXTS
    if ranks:  # as llama.cpp joins a pair of this vocabulary
        first = [CLS, *tokenizer.encode(QUERY, False), SEP]
        texts = [[*first, *tokenizer.encode(document, False)] for document in DOCUMENTS]
    core, pooled = EncoderCore(started), started.classifier or started.embedder
    for number, tokens in enumerate(texts):
        sampling = SamplingParams(max_tokens=0)
        core.add(Request(str(number), tokens, sampling, pooling=pooled.pooling, normalizes=not ranks))  # type: ignore[union-attr]
    actual: dict[str, np.ndarray] = {}
    while not core.is_idle:
        actual |= {delta.request_id: np.frombuffer(delta.embedding, "<f4") for delta in core.step()}
    server = serve(path, ranks=ranks)
    if ranks:
        results = server.handle_rerank({"query": QUERY, "documents": DOCUMENTS})["results"]
        expected = [[each["relevance_score"]] for each in sorted(results, key=lambda each: each["index"])]
    else:
        expected = [each["embedding"] for each in server.handle_embeddings({"input": TEXTS})["data"]]
    for number, values in enumerate(np.array(expected, np.float32)):
        wanted = values if ranks else values / np.linalg.norm(values)
        np.testing.assert_allclose(actual[str(number)], wanted, atol=COARSE.get(case, 1e-3), rtol=1e-3)


CORPUS = [
    *(text for text in SAMPLES if "<" not in text),
    "  \n \t\n\n x 3 33 333 3333 33333 333333 3.3 3..3 1,234,567.89",
    "\u6211\u60f3\u5728apple\u5de5\u4f5c1314151 \u6f22\u5b57\u304b\u306a\u30ab\u30ca\ud55c\uad6d\uc5b4",
    "'''''' ```` \"\"\"\" .... !!!! ?????? I've 'RE We'Ve a'lL",
    "HelloWorld camelCase XMLHttp a_b-c/d\\e @#$%^&*()",
    "x = foo(bar)[1:-1] // comment\r\n\r\n\tif (a && b) {}\n",
    "\U0001f636\u200d\U0001f32b\ufe0f \U0001f999\U0001f999",
]
UNLIKE = {"default"}
"""A rule of llama.cpp for files that do not name one; jserve takes GPT-2's."""


def is_compared(text: str, name: str) -> bool:
    """llama.cpp does not normalize, knows no combining marks in words, and other digits than ASCII's in few rules."""
    is_plain = all(not 0x300 <= ord(c) < 0x370 and not 0x900 <= ord(c) < 0xE80 for c in text)
    return is_plain or name in ("gpt-2", "llama3", "smollm", "bloom", "laguna")


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS.keys() - UNLIKE))
def test_token_ids_are_llama_cpps(name: str, tmp_path: Path) -> None:
    """A vocabulary is trained on the corpus, so that each piece is a token of its own."""
    rules = PRE_TOKENIZERS[name]
    backend = Tokenizer(models.BPE(ignore_merges=rules.ignores_merges))
    backend.pre_tokenizer, backend.decoder = rules.splitter(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    path = write_llama(tmp_path / "m.gguf", backend, name)
    tokenizer, server = load_tokenizer(path), serve(path)
    for text in CORPUS:
        if is_compared(text, name):
            body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
            request = urllib.request.Request(
                f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as answer:
                assert tokenizer.encode(text, False) == json.load(answer)["tokens"], text


def write_llama(path: Path, backend: Tokenizer, pre: str) -> Path:
    """The least model that llama.cpp takes, with this tokenizer."""
    vocab = backend.get_vocab()
    tokens, merges = sorted(vocab, key=lambda token: vocab[token]), json.loads(backend.to_str())["model"]["merges"]
    writer, size = gguf.GGUFWriter(str(path), "llama"), 32
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(size)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    square, line, table = (size, size), (size,), (len(tokens), size)
    names = {f"blk.0.{part}": square for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
    names |= {f"blk.0.ffn_{part}": square for part in ("gate", "up", "down")}
    names |= {"blk.0.attn_norm": line, "blk.0.ffn_norm": line, "output_norm": line, "token_embd": table}
    for tensor, shape in names.items():
        writer.add_tensor(f"{tensor}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
