"""Secrets in the server's environment do not reach the processes that it starts."""

import os
from pathlib import Path

import pytest

from jserve.api.supervisor.environment import child_environment
from tests.api.live_server import StartServer

SECRETS = ("JSERVE_API_KEY", "VLLM_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")
OTHERS = ("PATH", "HOME", "TOKENIZERS_PARALLELISM", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "KEYBOARD")


def test_secrets_are_left_out_and_all_else_stays() -> None:
    environment = dict.fromkeys((*SECRETS, *OTHERS), "x")
    assert set(child_environment(environment)) == set(OTHERS)


def test_neither_the_engine_nor_a_worker_has_them(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "open-sesame")
    live = start_server()
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    live.chat("abc", max_tokens=2, response_format=schema)  # Starts a worker for templates and one for grammars.
    environments = [
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/environ")
        if _parent_of(path.parent) == os.getpid() and _is_ours((path.parent / "cmdline").read_bytes())
    ]
    assert len(environments) >= 3
    assert not [each for each in environments if b"open-sesame" in each]


def _is_ours(command: bytes) -> bool:
    return b"jserve" in command or b"fake_engine" in command


def _parent_of(process: Path) -> int:
    try:
        return int(process.joinpath("stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
