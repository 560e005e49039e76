"""The prefix cache of the real engine, shared under one key and closed to another."""

import json
import re
from typing import Any

import httpx
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.conftest import LiveServer, StartServer
from tests.acceptance.test_smoke import SMALL
from tests.patience import PATIENCE_S, wait_until

PROMPT = "The bees of the northern valley build their nests under the roofs of old barns, and " * 12


def _cached_tokens(server: LiveServer, key: str, **fields: str) -> int:
    client = OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
    model = client.models.list().data[0].id
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=1, temperature=0, extra_body=fields)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


def test_a_prompt_is_cached_for_its_own_key_only(start_server: StartServer) -> None:
    flags = (*SMALL, "--kv-cache-memory-bytes", "128MiB", "--enable-prompt-tokens-details")
    server = start_server(*flags, "--api-key", "alice", "bob", "--log-format", "json", "--metrics-without-key")
    assert _cached_tokens(server, "alice") == 0
    assert _cached_tokens(server, "alice") >= 64
    assert _cached_tokens(server, "bob") == 0
    assert _cached_tokens(server, "bob") >= 64
    assert _cached_tokens(server, "bob", cache_salt="mine") == 0
    assert _cached_tokens(server, "bob", cache_salt="mine") >= 64
    _check_log(server)
    _check_metrics(server)


def _lines_of_ended(server: LiveServer, count: int) -> list[dict[str, Any]]:
    """The log, once it names `count` completions: an answer may be read before its line is written."""

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.log.read_text().splitlines() if re.fullmatch(r"{.*}", line)]

    wait_until(lambda: sum(line.get("path") == "/v1/completions" for line in lines()) >= count)
    return lines()


def _check_log(server: LiveServer) -> None:
    """Every line of both processes is one JSON object, except those that libraries in C++ write."""
    lines = _lines_of_ended(server, count=6)
    loggers = {line["logger"].rpartition(".")[0] for line in lines}
    assert {"jserve.api", "jserve.runtime", "jserve"} <= loggers
    others = [line for line in server.log.read_text().splitlines() if not line.startswith("{")]
    assert not [line for line in others if not re.match(r"[IWEF]\d{4} |WARNING: All log messages before absl", line)]
    ended = [line for line in lines if line.get("path") == "/v1/completions"]
    assert len(ended) == 6
    assert len({line["request_id"] for line in ended}) == 6
    assert len({line["key_id"] for line in ended}) == 2
    assert [line["cached_tokens"] > 0 for line in ended] == [False, True] * 3
    assert PROMPT[:20] not in server.log.read_text()


def _check_metrics(server: LiveServer) -> None:
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    info = families["vllm:cache_config_info"].samples[0].labels
    assert int(info["num_gpu_blocks"]) > 1
    assert text.count("block_size=") == 1
    programs = [sample.labels for sample in families["jserve:compile"].samples]
    assert {"step", "sample"} <= {program["fn"] for program in programs}
    assert {program["source"] for program in programs} <= {"cold", "cache"}
    assert families["vllm:prompt_tokens_cached"].samples[0].value == server.metric("vllm:prefix_cache_hits_total") > 0
