"""The prefix cache of the real engine, shared under one key and closed to another."""

from openai import OpenAI

from tests.acceptance.conftest import LiveServer, StartServer
from tests.acceptance.test_smoke import SMALL

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
    server = start_server(*flags, "--api-key", "alice", "bob")
    assert _cached_tokens(server, "alice") == 0
    assert _cached_tokens(server, "alice") >= 64
    assert _cached_tokens(server, "bob") == 0
    assert _cached_tokens(server, "bob") >= 64
    assert _cached_tokens(server, "bob", cache_salt="mine") == 0
    assert _cached_tokens(server, "bob", cache_salt="mine") >= 64
