"""Spans, as a collector receives them from the real exporter."""

import builtins
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from jserve.api.telemetry.tracing import Tracer
from jserve.errors import StartupError
from tests.api.live_server import StartServer


class Collector:
    """An OTLP collector over HTTP that keeps what it gets."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path: str, export: ExportTraceServiceRequest) -> None:
        self.paths.add(path)
        for resource in export.resource_spans:
            self.resources.append(_values(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def test_a_request_becomes_a_span_with_vllms_names(start_server: StartServer, collector: Collector) -> None:
    live = start_server("--step-ms", "10", otlp_traces_endpoint=collector.url, api_keys=("one",))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "abc", "authorization": "Bearer one"}
    body = {"prompt": "zebra", "max_tokens": 6, "n": 2, "temperature": 1, "stream": True}
    assert live.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    live.http.post("/v1/completions", json={"max_tokens": "x"}, headers=headers)
    live.http.get("/v1/models", headers=headers)
    live.stop()
    assert collector.paths == {"/v1/traces"}
    assert collector.resources[0]["service.name"] == "jserve"
    [span] = collector.spans
    assert (span.name, span.kind) == ("llm_request", 2), "2 is SERVER"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    values = _values(span.attributes)
    expected = {
        "gen_ai.request.id": "cmpl-abc",
        "gen_ai.request.n": 2,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.response.model": "tiny",
        "gen_ai.usage.prompt_tokens": 5,
        "gen_ai.usage.completion_tokens": 12,
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
    }
    assert {name: values[name] for name in expected} == expected
    names = ("time_in_queue", "time_in_model_prefill", "time_in_model_decode", "time_in_model_inference")
    seconds = {name: values[f"gen_ai.latency.{name}"] for name in (*names, "time_to_first_token", "e2e")}
    assert all(value >= 0 for value in seconds.values())
    model = seconds["time_in_model_prefill"] + seconds["time_in_model_decode"]
    assert seconds["time_in_model_inference"] == pytest.approx(model, abs=1e-6)
    parts = seconds["time_in_queue"] + seconds["time_in_model_prefill"]
    assert seconds["time_to_first_token"] >= parts - 1e-6, "which begins when the call has come, and the queue later"
    assert seconds["e2e"] >= parts + seconds["time_in_model_decode"] - 1e-6
    assert [event.name for event in span.events] == ["queued", "scheduled", "first_token", "last_token"]
    times = [event.time_unix_nano for event in span.events]
    assert span.start_time_unix_nano <= times[0]
    assert times == sorted(times)
    assert times[-1] <= span.end_time_unix_nano
    assert "zebra" not in str(span)


def test_a_failure_is_marked_and_a_path_is_kept(start_server: StartServer, collector: Collector) -> None:
    live = start_server("--error-token", "70", otlp_traces_endpoint=f"{collector.url}/else/where")
    assert live.http.post("/v1/completions", json={"prompt": [70]}).status_code == 500
    live.stop()
    assert collector.paths == {"/else/where"}
    [span] = collector.spans
    assert span.status.code == 2
    assert span.parent_span_id == b""


def test_a_collector_that_is_not_there_harms_nobody(start_server: StartServer) -> None:
    live = start_server(otlp_traces_endpoint="http://127.0.0.1:9")
    live.complete("abc", max_tokens=2)
    live.stop()
    assert live.error is None


def test_without_the_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StartupError, match=r"pip install 'jserve\[otel\]'"):
        Tracer("http://127.0.0.1:9", "m")
