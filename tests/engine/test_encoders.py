"""Encoders against transformers in float32, through the engine: alone and beside others, however they are pooled."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from jserve.config import EngineConfig
from jserve.engine.encoder_core import EncoderCore
from jserve.errors import StartupError
from jserve.layers.bidirectional import QUERY_BLOCK, attend
from jserve.protocol import Pooling, Request, SamplingParams, TokenDelta
from jserve.runtime.encoder_step import EncodeBucket, encode_buckets
from jserve.runtime.shapes import EngineShape
from jserve.runtime.start import Started, start_runner
from tests.worlds import make_model

LONGEST = 32
TOLERANCE = 1e-5
"""For unit vectors: float32 sums in another order over two layers."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {}),
    "bert under a head, one token type": (
        "BertForMaskedLM",
        {"type_vocab_size": 1, "hidden_act": "gelu_new", "vocab_size": 131},
    ),
    "xlm-roberta": ("XLMRobertaModel", {"pad_token_id": 1, "max_position_embeddings": LONGEST + 2}),
    "nomic-bert": ("NomicBertModel", {}),
    "gte": ("GteModel", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "gte without token types": ("GteModel", {"type_vocab_size": 0}),
    "jina embeddings v3": ("JinaEmbeddingsV3Model", {"type_vocab_size": 1}),
    "modernbert": ("ModernBertModel", {"num_hidden_layers": 3, "local_attention": 10}),
    "modernbert under a head": ("ModernBertForMaskedLM", {"attention_bias": True, "global_attn_every_n_layers": 2}),
    "eurobert": ("EuroBertModel", {}),
    "embeddinggemma": (
        "Gemma3TextModel",
        {"use_bidirectional_attention": True, "sliding_window": 12, "head_dim": 16, "num_hidden_layers": 2}
        | {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 20},
    ),
    "qwen 3, both ways": ("Qwen3Model", {"is_causal": False, "head_dim": 16}),
    "mistral, both ways, with a window": ("MistralModel", {"is_causal": False, "sliding_window": 7}),
}
TEXTS = {"one": [5], "two": [5, 9], "long": [3 + index % 50 for index in range(LONGEST)], "middle": list(range(30, 50))}
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")


def start(folder: Path, executables: str, *, early: bool = False, **options: Any) -> Started:
    sizes = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 64, **options}
    config = EngineConfig(model=str(folder), compile_cache_dir=executables, **sizes)  # type: ignore[arg-type]
    return start_runner(config, lambda *_: None, early=early)


class World:
    """A tiny model, and the same in transformers. Only the first of the cases has all its programs."""

    def __init__(self, folder: Path, case: str, executables: str) -> None:
        architecture, fields = CASES[case]
        make_model(folder, architecture, **{"max_position_embeddings": LONGEST, **fields})
        loaded = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.model = loaded.eval()
        self.core = EncoderCore(start(folder, executables, early=case != "bert"))

    def expected(self, tokens: list[int], pooling: Pooling) -> np.ndarray:
        """f32[E] of length 1."""
        with torch.no_grad():
            hidden = self.model(torch.tensor([tokens])).last_hidden_state[0].numpy()
        vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        actual: np.ndarray = vector / np.linalg.norm(vector)
        return actual


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, executables: str) -> Callable[[str], World]:
    return cache(lambda case: World(tmp_path_factory.mktemp("encoder"), case, executables))


@pytest.fixture
def bert(worlds: Callable[[str], World]) -> World:
    return worlds("bert")


def request(name: str, tokens: list[int], pooling: Pooling = "mean", priority: int = 0) -> Request:
    return Request(name, tokens, SamplingParams(max_tokens=0), pooling=pooling, priority=priority)


def finish(core: EncoderCore) -> dict[str, TokenDelta]:
    actual: dict[str, TokenDelta] = {}
    while not core.is_idle:
        for delta in core.step():
            assert delta.request_id not in actual
            actual[delta.request_id] = delta
    return actual


def embed(core: EncoderCore, requests: list[Request]) -> dict[str, np.ndarray]:
    for each in requests:
        assert core.add(each) is None
    deltas = finish(core)
    assert deltas.keys() == {each.request_id for each in requests}
    assert all((delta.finish_reason, delta.token_ids) == ("stop", []) for delta in deltas.values())
    return {name: np.frombuffer(delta.embedding, "<f4") for name, delta in deltas.items()}


SLOW = ("gte", "jina embeddings v3", "modernbert under a head", "eurobert", "qwen 3, both ways")
"""Whose parts the others have, too."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_vectors_equal_transformers_whatever_shares_the_step(worlds: Callable[[str], World], case: str) -> None:
    world = worlds(case)
    rng = np.random.default_rng(0)
    texts = {**TEXTS, **{f"random {n}": rng.integers(3, 128, n).tolist() for n in (15, 16, 17, 31, 9, 9, 2)}}
    every = [request(f"{pooling} {name}", tokens, pooling) for pooling in POOLINGS for name, tokens in texts.items()]
    actual = embed(world.core, every)
    for pooling in POOLINGS:
        for name, tokens in texts.items():
            np.testing.assert_allclose(actual[f"{pooling} {name}"], world.expected(tokens, pooling), atol=TOLERANCE)
    for name, tokens in TEXTS.items():
        (alone,) = embed(world.core, [request(name, tokens)]).values()
        np.testing.assert_allclose(alone, actual[f"mean {name}"], atol=1e-6)


def test_texts_of_about_one_length_share_a_step_and_nothing_is_compiled(bert: World) -> None:
    core, before = bert.core, bert.core.stats()
    for number in range(8):
        core.add(request(str(number), [3 + number] * (10 if number % 2 else 20)))
    assert core.stats().num_waiting == 8
    with core.compiles.watch():
        finish(core)
    after = core.stats()
    assert after.num_steps - before.num_steps == 1 + 2  # 4 texts of 16 places, and 4 of 32 of which 2 fit a step
    assert after.prompt_tokens_computed - before.prompt_tokens_computed == 4 * 30
    assert (after.compiles_after_ready, after.num_waiting, after.num_running, after.num_pages) == (0, 0, 0, 0)


def test_first_program_alone_serves_texts_of_all_lengths(bert: World, tmp_path: Path, executables: str) -> None:
    folder = make_model(tmp_path, "BertModel", max_position_embeddings=LONGEST)
    core = EncoderCore(start(folder, executables, early=True))
    counts = core.runner.table.count()
    assert (counts.ready, counts.failed) == (1, 0)
    assert len(core.runner.table.missing()) == counts.pending > 0
    actual = embed(core, [request(name, tokens) for name, tokens in TEXTS.items()])
    for name, tokens in TEXTS.items():
        np.testing.assert_allclose(actual[name], bert.expected(tokens, "mean"), atol=TOLERANCE)


def test_aborted_text_gets_no_vector_and_its_neighbours_do(bert: World) -> None:
    core = bert.core
    for name in ("a", "b", "c"):
        core.add(request(name, [4, 5, 6]))
    core.add(request("waiting", [7] * 20))
    assert core.step() == []  # a, b and c are in flight
    core.abort(["b", "waiting", "unknown"])
    assert finish(core).keys() == {"a", "c"}


def test_more_important_text_is_computed_first(bert: World) -> None:
    core = bert.core
    for number in range(20):
        core.add(request(f"later {number}", [4] * 20))
    core.add(request("urgent", [4, 5], priority=-1))
    core.step()
    assert [delta.request_id for delta in core.step()] == ["urgent"]
    assert len(finish(core)) == 20


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (Request("a", [5], SamplingParams()), "does not generate text"),
        (request("a", []), "empty"),
        (request("a", [5] * 33), "33 tokens but max_model_len is 32"),
    ],
)
def test_what_can_never_be_embedded_is_refused_at_once(bert: World, refused: Request, words: str) -> None:
    delta = bert.core.add(refused)
    assert delta is not None
    assert delta.finish_reason == "error"
    assert words in (delta.error or "")
    assert bert.core.is_idle


def test_id_in_use_is_refused_and_free_again_afterwards(bert: World) -> None:
    assert bert.core.add(request("a", [5])) is None
    delta = bert.core.add(request("a", [6]))
    assert delta is not None
    assert "in use" in (delta.error or "")
    assert finish(bert.core).keys() == {"a"}
    assert embed(bert.core, [request("a", [6])]).keys() == {"a"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_parallel_size": 2}, "one device"),
        ({"quantization": "int8"}, "floating point"),
        ({"max_model_len": 33}, "the model has 32 positions"),
    ],
)
def test_flags_that_an_encoder_cannot_follow_are_refused(
    tmp_path: Path, options: dict[str, Any], words: str, executables: str
) -> None:
    folder = make_model(tmp_path, "BertModel", max_position_embeddings=LONGEST)
    with pytest.raises(StartupError, match=words):
        start(folder, executables, **options)


@pytest.mark.parametrize(("groups", "radius"), [(1, None), (2, None), (2, 70), (1, 0)])
def test_long_texts_attend_in_blocks_of_queries(groups: int, radius: int | None) -> None:
    """Two blocks; of the texts of 1,024 places one is 600 tokens long, and one is padding alone."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 2 * QUERY_BLOCK, 2 * groups, 8), np.float32)
    k, v = rng.standard_normal((2, 2, 2 * QUERY_BLOCK, 2, 8), np.float32)
    flat = [each.reshape(-1, *each.shape[2:]) for each in (q, k, v)]
    actual = np.asarray(attend(*flat, np.array([600, 0]), radius=radius, precision=jax.lax.Precision.HIGHEST))
    place = torch.arange(600)
    mask = (place[:, None] - place).abs() <= (600 if radius is None else radius)
    heads = [torch.from_numpy(each[0, :600].swapaxes(0, 1)) for each in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
    np.testing.assert_allclose(actual[:600], expected.numpy().swapaxes(0, 1), atol=1e-6)
    assert np.isfinite(actual).all()


@pytest.mark.parametrize(("longest", "lengths"), [(20, (16, 32)), (256, (16, 32, 64, 128, 256)), (600, (512, 1024))])
def test_buckets_hold_the_longest_text_and_as_many_as_fit_a_step(longest: int, lengths: tuple[int, ...]) -> None:
    buckets = encode_buckets(EngineShape(64, 256, longest, 1, 0, 100))
    assert tuple(sorted({bucket.length for bucket in buckets}))[-len(lengths) :] == lengths
    assert EncodeBucket(lengths[-1], 1) in buckets
    for bucket in buckets:
        assert bucket.texts == 1 or (bucket.texts <= 64 and bucket.tokens <= 256)
        assert bucket.length <= QUERY_BLOCK or bucket.length % QUERY_BLOCK == 0
