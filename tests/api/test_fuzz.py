"""No request, however odd, gets a 5xx, and every refusal is in its route's own words.

Two ways to make odd requests: from the server's own description, and by breaking good ones byte by byte. New
routes are covered as soon as they stand in ROUTES.
"""

import copy
import json
import random
import re
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import Phase, given, settings
from schemathesis import GenerationMode

from jserve.api.app import BODIES, ROUTES
from jserve.api.errors import Dialect
from jserve.api.http.description import error_schema
from tests.api.live_server import LiveServer
from tests.patience import PATIENCE_S

POST_ROUTES = sorted({path for method, path, _ in ROUTES if method == "POST"})
NOT_DONE_HERE = {"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest}"}
"""These answer 501 to whatever is asked."""
STORED = ("/v1/files", "/v1/batches")
"""These answer 501 where the server has no folder to keep them in, and else as `test_batches.py` says."""
GOOD: dict[str, Any] = {
    "model": "tiny",
    "name": "tiny",
    "max_tokens": 5,
    "stream": False,
    "temperature": 0.5,
    "seed": 3,
    "stop": ["zz"],
    "n": 1,
    "logit_bias": {"5": 1.0},
    "prompt": "abc",
    "input": "abc",
    "text_1": "abc",
    "text_2": ["abc", "d"],
    "query": "abc",
    "documents": ["abc", "d"],
    "tokens": [5, 6],
    "options": {"num_predict": 5},
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "user", "content": "x"}],
    "response_format": {"type": "text"},
    "stream_options": None,
    "metadata": {"a": "b"},
}
"""Every route takes the fields that it knows from this."""
NOT_OF = {
    "/v1/chat/completions": {"documents"},
    "/tokenize": {"messages"},
    "/classify": {"messages"},
    "/v1/embeddings": {"messages"},
    "/v1/responses": {"prompt"},
    "/v1/responses/input_tokens": {"prompt"},
}
"""Fields that mean something else there."""
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, -(2**63) - 1, 10**30, 1e308, -0.5, "", " ", "\x00", "x" * 5000, 
    "\U0010ffff", "{{ x }}", "/etc/passwd", [], {}, [[]], [{}], [None], [1, "a"], {"": ""}, {"type": "x"},
    {"a": {"b": [1, {"c": None}]}},
)  # fmt: skip
ODD_BYTES = (
    b"\x00", b"\xff", b"\xc3\x28", b"\\ud800", b"\\u0000", b"NaN", b"Infinity", b"-", b"1e9999", b"0x1", b"01",
    b"[" * 500, b"{\"a\":" * 500, b"]", b"}", b"\"", b"\\", b",", b":", b"null", b"1" * 5000,
    b"/*", b"//", b"\xef\xbb\xbf",
)  # fmt: skip


def _check(method: str, path: str, status: int, text: str) -> None:
    """The answer is one that a client can understand."""
    if path in NOT_DONE_HERE or path.startswith(STORED):
        assert status in (400, 404, 405, 413, 415, 501), (status, text[:500])
    else:
        assert status < 500, (status, text[:500])
    if status >= 400 and method != "HEAD":
        jsonschema.validate(json.loads(text), error_schema(Dialect.of(path)))
        assert "Traceback" not in text


@pytest.fixture(scope="module")
def description(server: LiveServer) -> Any:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    schema.config.generation.update(allow_x00=True)
    return schema


QUICK = settings(
    max_examples=15,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
LONG = settings(QUICK, max_examples=400, derandomize=False)
OPERATIONS = [
    *((method, re.sub(r":\w+}", "}", path), GenerationMode.POSITIVE) for method, path, _ in ROUTES),
    *(("POST", path, GenerationMode.NEGATIVE) for path in BODIES),
]


@pytest.mark.parametrize(("method", "path", "mode"), OPERATIONS)
def test_what_is_described_or_contradicts_it_is_no_error_of_ours(
    description: Any, method: str, path: str, mode: GenerationMode
) -> None:
    _generate(description, method, path, mode, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), OPERATIONS)
def test_what_is_described_or_contradicts_it_is_no_error_of_ours_for_long(
    description: Any, method: str, path: str, mode: GenerationMode
) -> None:
    _generate(description, method, path, mode, LONG)


def _generate(description: Any, method: str, path: str, mode: GenerationMode, how: settings) -> None:
    operation = description[path][method]
    takes_input = bool(operation.body) or bool(operation.path_parameters)

    @given(operation.as_strategy(generation_mode=mode))
    @(how if takes_input else settings(how, max_examples=1))
    def check(case: schemathesis.Case) -> None:
        _call(case)

    check()


def _call(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict):  # At most a few tokens each, and a model that is there.
        case.body.update({key: 3 for key in ("max_tokens", "max_completion_tokens") if key in case.body})
        case.body.pop("model", None)
    response = case.call(timeout=PATIENCE_S)
    _check(case.method, case.path, response.status_code, response.text)


def _good_body(path: str) -> dict[str, Any]:
    known = set(BODIES[path].model_fields if path in BODIES else GOOD) - NOT_OF.get(path, set())
    return {name: copy.deepcopy(value) for name, value in GOOD.items() if name in known}


def _with_an_odd_value(body: dict[str, Any], rng: random.Random) -> bytes:
    """One value, somewhere in the body, becomes an odd one."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(body)
    holder, key = rng.choice(places)
    holder[key] = rng.choice(ODD_VALUES)
    return json.dumps(body).encode()


def _with_odd_bytes(body: dict[str, Any], rng: random.Random) -> bytes:
    raw = bytearray(json.dumps(body).encode())
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(raw) + 1)
        end = min(len(raw), start + rng.choice((0, 0, 1, 1, 2, 8, 40)))
        raw[start:end] = rng.choice((b"", *ODD_BYTES))
    return bytes(raw)


def _fuzz(server: LiveServer, path: str, seed: int, count: int) -> None:
    rng = random.Random(f"{path} {seed}")
    url = path.replace("{response_id}", "resp_1").replace("{digest}", "sha256:0")
    statuses = set()
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        for _ in range(count):
            mutate = rng.choice((_with_an_odd_value, _with_odd_bytes))
            content = mutate(_good_body(path), rng)
            response = client.post(url, content=content, headers={"content-type": "application/json"})
            try:
                _check("POST", path, response.status_code, response.text)
            except (AssertionError, ValueError, jsonschema.ValidationError) as error:
                pytest.fail(f"{content[:1000]!r}: {error}")
            statuses.add(response.status_code)
    assert statuses


@pytest.mark.parametrize("path", POST_ROUTES)
def test_a_good_body_that_was_broken_is_no_error_of_ours(server: LiveServer, path: str) -> None:
    _fuzz(server, path, seed=0, count=60)


@pytest.mark.slow
@pytest.mark.parametrize("path", POST_ROUTES)
def test_a_good_body_that_was_broken_is_no_error_of_ours_for_long(server: LiveServer, path: str) -> None:
    _fuzz(server, path, seed=1, count=3000)


@pytest.mark.parametrize("path", sorted(path for path in BODIES if not path.startswith(STORED)))
def test_the_good_body_is_good(server: LiveServer, path: str) -> None:
    """Else all that was made from it would end at the same check."""
    response = server.http.post(path, json=_good_body(path))
    if response.status_code == 400:
        # The prompt around a query alone is longer than the context of the tests, and their model has no labels.
        assert response.json()["error"]["param"] == ("model" if path == "/classify" else "input_tokens"), response.text
    else:
        assert response.status_code == 200, response.text


def test_every_body_is_described(server: LiveServer) -> None:
    described = server.http.get("/openapi.json").json()["paths"]
    for path in POST_ROUTES:
        takes_body = path not in NOT_DONE_HERE | {"/ping"} and "{" not in path
        assert ("requestBody" in described[path]["post"]) == takes_body, path
        assert "4XX" in described[path]["post"]["responses"]
