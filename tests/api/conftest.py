"""A tiny model folder with a tokenizer made here, and servers for it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jserve.api.settings import ServerSettings
from jserve.config import EngineConfig
from tests.api.live_server import MAX_MODEL_LEN, ROOT, TEMPLATE, LiveServer, StartServer, fake_engine
from tests.patience import PATIENCE_S


@pytest.fixture(scope="session", autouse=True)
def _importable_from_subprocesses() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE: three special tokens, 256 bytes, and three merges."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "l"), ("o", "r"), ("ll", "o")]
    tokens = [*specials, *alphabet, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return made


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    save_file({"lm_head.weight": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "top_p": 0.9}))
    return folder


@pytest.fixture(scope="session")
def make_server(model_dir: Path) -> StartServer:
    """Start a server; keyword arguments are settings, and `max_model_len`. The caller stops it."""

    def start(*engine_options: str, wait: bool = True, **settings: Any) -> LiveServer:
        length = settings.pop("max_model_len", MAX_MODEL_LEN)
        fields = {"model": str(model_dir), "served_model_names": ("tiny", "other"), "shutdown_timeout_s": 30.0}
        fields |= {"grammar_compile_timeout_s": PATIENCE_S / 2, "receive_timeout_s": PATIENCE_S}
        live = LiveServer(
            ServerSettings(engine_command=fake_engine(*engine_options), **(fields | settings)),
            EngineConfig(model=str(model_dir), max_model_len=length),
        )
        if wait:
            live.wait_until_ready()
        return live

    return start


@pytest.fixture(scope="session")
def server(make_server: StartServer) -> Iterator[LiveServer]:
    """A server with a fast engine, shared by all tests that leave it as it was."""
    live = make_server()
    yield live
    live.stop()


@pytest.fixture
def start_server(make_server: StartServer) -> Iterator[StartServer]:
    """Like `make_server`; what a test starts is stopped after it."""
    started: list[LiveServer] = []

    def start(*engine_options: str, **settings: Any) -> LiveServer:
        started.append(make_server(*engine_options, **settings))
        return started[-1]

    yield start
    for live in started:
        live.stop()
