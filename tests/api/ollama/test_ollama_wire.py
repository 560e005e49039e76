"""Ollama's API on the wire: framing, headers, refusals by name, and what curl sends."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from jserve.api.model.defaults import SamplingDefaults
from jserve.api.ollama.messages import to_openai
from jserve.api.ollama.models import parameter_size
from jserve.api.ollama.names import tagged
from jserve.api.ollama.options import check_options, sampling_dialect, sampling_fields
from jserve.api.ollama.timestamps import keep_alive_seconds, rfc3339
from jserve.api.ollama.tool_calls import ToolCallGatherer
from jserve.errors import RequestError
from jserve.text.output.pieces import ToolCallDelta
from tests.api.live_server import LiveServer, StartServer

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
RAW = {"model": "tiny", "prompt": "abc", "raw": True, "options": {"num_predict": 3}}


def post(server: LiveServer, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    response = server.http.post(path, json={"stream": False, **body})
    return response.status_code, response.json()


def refusal(server: LiveServer, path: str, body: dict[str, Any]) -> str:
    """The message of a 400 in Ollama's shape."""
    status, answer = post(server, path, body)
    assert status == 400, answer
    assert list(answer) == ["error"]
    return str(answer["error"])


def test_health_checks_of_clients_find_ollama(server: LiveServer) -> None:
    response = server.http.get("/")
    assert response.text == "Ollama is running"
    assert response.headers["content-type"].startswith("text/plain")
    version = server.http.get("/api/version").json()["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert tuple(map(int, version.split("."))) >= (0, 12, 11)
    for path in ("/", "/api/version", "/api/tags"):
        head = server.http.head(path)
        assert (head.status_code, head.content) == (200, b"")


def test_stream_is_lines_of_json_without_being_asked_for(server: LiveServer) -> None:
    response = server.http.post("/api/chat", json=CHAT)
    assert response.headers["content-type"] == "application/x-ndjson"
    *lines, rest = response.text.split("\n")
    assert rest == ""
    first, *_, last = [json.loads(line) for line in lines]
    assert first["model"] == "tiny"
    assert first["done"] is False
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", first["created_at"])
    assert first["message"] == {"role": "assistant", "content": "u"}
    assert last["message"] == {"role": "assistant", "content": ""}
    durations = ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"]
    counts = ["prompt_eval_count", "prompt_eval_cached_count", "eval_count"]
    assert {*last} == {"model", "created_at", "message", "done", "done_reason", *durations, *counts}
    assert all(isinstance(last[name], int) for name in durations + counts)


def test_whole_answer_is_one_object(server: LiveServer) -> None:
    response = server.http.post("/api/generate", json=RAW | {"stream": False})
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert (body["response"], body["done"], body["done_reason"]) == ("abc", True, "length")
    assert "message" not in body
    assert "logprobs" not in body


def test_curl_without_a_content_type_is_understood(server: LiveServer) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    for path, body in (("/api/chat", CHAT), ("/api/generate", RAW), ("/api/show", {"model": "tiny"})):
        assert server.http.post(path, content=json.dumps(body), headers=headers).status_code == 200


def test_error_in_the_middle_of_a_stream_is_its_last_line(start_server: StartServer, tmp_path: Path) -> None:
    c = str(3 + sorted(map(chr, range(33, 127))).index("c"))
    (hold := tmp_path / "hold").touch()
    server = start_server("--error-token", c, "--stall-token", c, "--stall-held-by", str(hold))
    with server.http.stream("POST", "/api/generate", json=RAW) as response:
        assert response.status_code == 200
        received = response.iter_lines()
        first = next(received)
        hold.unlink()
        *lines, last = [json.loads(line) for line in (first, *received)]
    assert "".join(line["response"] for line in lines) == "ab"
    assert list(last) == ["error"]
    assert "torn" in last["error"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show"])
@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'{"model": 3}', b"\xff"])
def test_malformed_bodies_are_400_in_ollamas_shape(server: LiveServer, path: str, content: bytes) -> None:
    response = server.http.post(path, content=content)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert response.json()["error"]


def test_absent_routes_and_methods_have_ollamas_shape(server: LiveServer) -> None:
    assert server.http.get("/api/absent").json() == {"error": "Not Found"}
    assert server.http.get("/api/chat").status_code == 405
    assert server.http.delete("/api/delete").status_code == 501
    assert server.http.head("/api/blobs/sha256:00").status_code == 501
    assert "keeps no blobs" in server.http.post("/api/blobs/sha256:00", content=b"weights").json()["error"]


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        (
            "/api/generate",
            {"prompt": "x", "template": "{{ .Prompt }}"},
            "template: a request cannot bring a Go template",
        ),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, "images"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "y"}, "raw mode"),
        ("/api/generate", {"prompt": "x", "context": [300]}, "context contains token id 300"),
        ("/api/generate", {"prompt": "x", "raw": True, "top_logprobs": 2}, "top_logprobs"),
        ("/api/generate", {"prompt": "x", "top_logprobs": 2}, "top_logprobs"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
        ("/api/chat", {"messages": [{"content": "x"}]}, "messages[0].role"),
        ("/api/chat", CHAT | {"format": "xml"}, "invalid format: 'xml'"),
        ("/api/chat", CHAT | {"format": 3}, "invalid format: '3'"),
        ("/api/chat", CHAT | {"format": {"type": "wibble"}}, "format: $: `type` 'wibble'"),
        ("/api/generate", {"prompt": "x", "format": {"type": "wibble"}}, "format: $: `type` 'wibble'"),
        ("/api/generate", {"prompt": "x", "raw": True, "format": {"type": "wibble"}}, "format: $: `type` 'wibble'"),
        ("/api/chat", CHAT | {"think": "hard"}, "invalid think value: 'hard'"),
        ("/api/chat", CHAT | {"think": True}, '"tiny" does not support thinking'),
        ("/api/chat", CHAT | {"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ("/api/chat", CHAT | {"keep_alive": "soon"}, "keep_alive"),
        ("/api/chat", CHAT | {"options": {"temperature": "hot"}}, 'option "temperature" must be of type float32'),
        ("/api/chat", CHAT | {"options": {"top_k": 10**30}}, 'option "top_k" must be of type integer'),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    server: LiveServer, path: str, fields: dict[str, Any], words: str
) -> None:
    message = refusal(server, path, fields)
    assert words in message
    assert "response_format" not in message


def test_values_that_change_nothing_are_accepted(server: LiveServer) -> None:
    neutral = {
        "suffix": "",
        "template": "",
        "system": "",
        "images": [],
        "context": [],
        "format": "",
        "keep_alive": -1,
        "think": False,
        "options": {"typical_p": 1.0, "mirostat": 0, "num_ctx": 4096, "num_gpu": 99, "use_mmap": True, "stop": []},
    }
    plain = {"prompt": "hello"}
    [(status, answer), (_, expected)] = [post(server, "/api/generate", body) for body in (plain | neutral, plain)]
    assert status == 200
    assert answer["response"] == expected["response"] == "user\nhello"


def test_unknown_option_is_logged_and_ignored(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert post(server, "/api/generate", RAW | {"options": {"num_predict": 2, "tempo": 3}})[1]["response"] == "ab"
    assert "tempo" in caplog.text


def test_defaults_are_the_models_and_then_ollamas() -> None:
    fields = sampling_fields({}, SamplingDefaults(), 100)
    assert (fields["temperature"], fields["top_k"], fields["top_p"], fields["min_p"]) == (0.8, 40, 0.9, 0.0)
    assert fields["max_tokens"] is None
    assert fields["repetition_penalty"] == 1.0
    model = SamplingDefaults.from_generation_config({"temperature": 1.0, "top_k": 20}, source="m")
    fields = sampling_fields({}, model, 100)
    assert (fields["temperature"], fields["top_k"], fields["top_p"]) == (1.0, 20, 0.9)
    fields = sampling_fields({"temperature": 0.1, "top_k": 0, "num_predict": 500}, model, 100)
    assert (fields["temperature"], fields["top_k"], fields["max_tokens"]) == (0.1, 0, 100)


@pytest.mark.parametrize(
    ("options", "penalty", "window"),
    [
        ({"repeat_penalty": 1.1}, 1.1, 64),
        ({"repeat_penalty": 1.1, "repeat_last_n": 64}, 1.1, 64),
        ({"repeat_penalty": 1.1, "repeat_last_n": 5}, 1.1, 5),
        ({"repeat_penalty": 1.1, "repeat_last_n": -1}, 1.1, None),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, 1.0, None),
        ({"repeat_penalty": 1.1, "repeat_last_n": 100}, 1.1, None),
        ({"repeat_penalty": 0}, 1.0, 64),
        ({}, 1.3, None),
    ],
)
def test_penalties_look_at_a_window(options: dict[str, Any], penalty: float, window: int | None) -> None:
    model = SamplingDefaults.from_generation_config({"repetition_penalty": 1.3}, source="m")
    checked = check_options(options)
    assert sampling_fields(checked, model, 100)["repetition_penalty"] == penalty
    assert sampling_dialect(checked, model, 100).penalty_window == window


@pytest.mark.parametrize(
    ("parameters", "window"), [({"repeat_penalty": 1.1}, 64), ({"repeat_last_n": 8}, 8), ({}, None)]
)
def test_the_window_of_a_modelfile_is_its_own_or_ollamas(parameters: dict[str, Any], window: int | None) -> None:
    model = SamplingDefaults.from_ollama(parameters, source="m")
    assert sampling_dialect({}, model, 100).penalty_window == window


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"temperature": 3}, "temperature", 3),
        ({"temperature": -1}, "temperature", 0),
        ({"top_p": 0}, "top_p", 0),
        ({"top_p": 1.5}, "top_p", 1),
        ({"min_p": -1}, "min_p", 0),
        ({"top_k": -5}, "top_k", 0),
        ({"stop": [""]}, "stop", []),
        ({"stop": ["", "x"]}, "stop", ["x"]),
        ({"presence_penalty": 7}, "presence_penalty", 7),
        ({"repeat_penalty": 1e30}, "repetition_penalty", 100),
        ({"mirostat": 2, "typical_p": 0.5, "tfs_z": 0.5, "penalize_newline": False}, "temperature", 0.8),
    ],
)
def test_values_out_of_range_are_clamped(
    server: LiveServer, options: dict[str, Any], field: str, value: float | list[str]
) -> None:
    assert sampling_fields(check_options(options), SamplingDefaults(), 100)[field] == value
    for body in ({"prompt": "hello"}, RAW):
        assert post(server, "/api/generate", {**body, "options": {**options, "num_predict": 2}})[0] == 200


def test_ollamas_own_defaults_written_out_are_accepted(server: LiveServer) -> None:
    """What open-webui sends: every option at the value that Ollama's documentation names."""
    options = {
        "num_keep": 5, "seed": 42, "num_predict": 4, "top_k": 20, "top_p": 0.9, "min_p": 0.0, "typical_p": 0.7,
        "repeat_last_n": 64, "temperature": 0.8, "repeat_penalty": 1.1, "presence_penalty": 1.5,
        "frequency_penalty": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "penalize_newline": True,
        "stop": ["\n", "user:"], "numa": False, "num_ctx": 1024, "num_batch": 2, "num_gpu": 1, "main_gpu": 0,
        "low_vram": False, "vocab_only": False, "use_mmap": True, "use_mlock": False, "num_thread": 8, "tfs_z": 1.0,
    }  # fmt: skip
    assert post(server, "/api/generate", {"prompt": "hello", "options": options})[0] == 200
    chat = {"messages": [{"role": "user", "content": "hello"}], "options": options}
    assert post(server, "/api/chat", chat)[0] == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_ctx", "4096"),
        ("num_ctx", 1.5),
        ("seed", True),
        ("seed", 2**63),
        ("top_k", float("inf")),
        ("min_p", [0.1]),
        ("use_mmap", 1),
        ("stop", "###"),
        ("stop", ["a", 1]),
    ],
)
def test_options_of_a_wrong_type_are_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f'option "{name}" must be of type'):
        check_options({name: value})


def test_whole_numbers_may_be_written_as_floats_and_null_is_absent() -> None:
    assert check_options({"seed": 7.0, "top_p": 1, "stop": None, "num_ctx": 8}) == {"seed": 7, "top_p": 1, "num_ctx": 8}


def test_names_get_their_tag() -> None:
    names = ["tiny", "tiny:latest", "llama3.2:3b", "host:5000/library/tiny", "hf.co/org/repo:Q4_K_M"]
    tags = ["tiny:latest", "tiny:latest", "llama3.2:3b", "host:5000/library/tiny:latest", "hf.co/org/repo:Q4_K_M"]
    assert [tagged(name) for name in names] == tags


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        (300, 300),
        (-1, -1),
        ("5m", 300),
        ("1h30m", 5400),
        ("-1s", -1),
        ("0", 0),
        ("1.5h", 5400),
    ],
)
def test_keep_alive_is_seconds_or_a_go_duration(value: float | str | None, seconds: float | None) -> None:
    assert keep_alive_seconds(value) == seconds


@pytest.mark.parametrize("value", ["soon", "5", "5 m", "m5", "1h 30m", float("nan"), "1s" * 60])
def test_other_durations_are_refused(value: float | str) -> None:
    with pytest.raises(RequestError, match="keep_alive"):
        keep_alive_seconds(value)


def test_times_have_nanoseconds() -> None:
    assert rfc3339(1_700_000_000_000_000_042) == "2023-11-14T22:13:20.000000042Z"


def test_parameter_sizes_are_written_as_ollama_does() -> None:
    counts = [134_515_008, 8_030_000_000, 7_000_000_000, 500_000_000, 2_500, 12]
    assert [parameter_size(count) for count in counts] == ["134.52M", "8.0B", "7B", "500M", "2K", "12"]


def test_tool_messages_are_given_the_ids_of_the_calls_that_they_answer() -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    other = {"function": {"name": "time", "arguments": {}}}
    messages = [
        {"role": "USER", "content": "?"},
        {"role": "assistant", "tool_calls": [call, other, call]},
        {"role": "tool", "tool_name": "time", "content": "noon"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "tool_name": "add", "content": "3"},
    ]
    user, assistant, *answers = to_openai(messages)
    assert user == {"role": "user", "content": "?"}
    assert [made["id"] for made in assistant["tool_calls"]] == ["call00000", "call00001", "call00002"]
    assert assistant["tool_calls"][0] == {
        "id": "call00000",
        "type": "function",
        "function": {"name": "add", "arguments": {"a": 1}},
    }
    assert [(made["name"], made["tool_call_id"]) for made in answers] == [
        ("time", "call00001"),
        ("add", "call00000"),
        ("add", "call00002"),
    ]


def test_given_ids_of_calls_are_kept() -> None:
    call = {"id": "mine", "function": {"name": "add", "arguments": {}}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "mine", "content": "2"}]
    [assistant, answer] = to_openai(messages)
    assert assistant["tool_calls"][0]["id"] == answer["tool_call_id"] == "mine"
    assert answer["name"] == "add"


@pytest.mark.parametrize(
    "calls", ["x", [3], [{}], [{"function": {"arguments": {}}}], [{"function": {"name": "f", "arguments": [1]}}]]
)
def test_malformed_tool_calls_are_named(calls: Any) -> None:
    with pytest.raises(RequestError, match=re.escape("messages[0].tool_calls")):
        to_openai([{"role": "assistant", "tool_calls": calls}])


def test_streamed_tool_calls_come_whole_and_once() -> None:
    gatherer = ToolCallGatherer()
    gatherer.push([ToolCallDelta(0, "one", "add", '{"a": '), ToolCallDelta(0, arguments="1}")])
    assert gatherer.take(is_last=False) == []
    gatherer.push([ToolCallDelta(1, "two", "time")])
    expected = {"id": "one", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}
    assert gatherer.take(is_last=False) == [expected]
    assert gatherer.take(is_last=False) == []
    gatherer.push([ToolCallDelta(1, arguments="{}"), ToolCallDelta(2, "three", "cut", '{"a": "b')])
    calls = gatherer.take(is_last=False) + gatherer.take(is_last=True)
    assert [call["id"] for call in calls] == ["two"], "the token limit has cut the third"


def test_page_of_another_site_cannot_post_what_a_browser_sends_without_asking(server: LiveServer) -> None:
    body = b'{"model": "tiny", "prompt": "abc", "stream": false}'
    for media_type, status in (("text/plain", 400), ("application/json", 200)):
        headers = {"Content-Type": media_type, "Origin": "https://elsewhere.example"}
        assert server.http.post("/api/generate", content=body, headers=headers).status_code == status
    assert server.http.post("/api/generate", content=body, headers={"Content-Type": "text/plain"}).status_code == 200
