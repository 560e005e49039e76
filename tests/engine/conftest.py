"""One started runner for all tests of the engine."""

import pytest

from jserve.config import EngineConfig
from tests.engine.world import NUM_PAGES, PAGE, PAGE_BYTES, VOCAB, World
from tests.worlds import (
    add_few,
    make_model,
    start_shared,
)


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory, executables: str) -> World:
    folder = make_model(tmp_path_factory.mktemp("model"), "LlamaForCausalLM", vocab_size=VOCAB)
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        max_num_seqs=8,
        max_num_batched_tokens=16,
        max_model_len=64,
        page_size=PAGE,
        kv_cache_memory_bytes=NUM_PAGES * PAGE_BYTES,
        compile_cache_dir=executables,
    )
    started = start_shared(config)
    assert started.shape.num_pages == NUM_PAGES
    add_few(started.runner)
    return World(started, folder)
