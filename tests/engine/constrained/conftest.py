"""One tiny engine for all tests of constraints."""

import pytest

from jserve.config import EngineConfig
from jserve.text.tokenizers.tokenizer import Tokenizer
from tests.engine.constrained.world import EOS, OTHER_EOS, SIZES, VOCAB, World
from tests.text.tokenizers.tokenizer_maker import train_byte_level
from tests.worlds import add_few, make_model, start_shared


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, executables: str) -> World:
    folder = make_model(
        tmp_path_factory.mktemp("model"), "LlamaForCausalLM", vocab_size=VOCAB, eos_token_id=[EOS, OTHER_EOS]
    )
    backend = train_byte_level("gpt-2")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    config = EngineConfig(model=str(folder), compile_cache_dir=executables, **SIZES)
    started = start_shared(config)
    add_few(started.runner)
    return World(started, Tokenizer(backend, source=folder))
