"""OpenTelemetry spans, one per request that reached the engine, under the names that vLLM gives them.

The package is optional (`pip install jserve[otel]`). Spans are made when a request is over, from times that
are measured anyway, and leave in a thread of their own: nothing is done per token, and nothing waits.
"""

import threading
from typing import Any
from urllib.parse import urlsplit

from jserve.api.call import Call
from jserve.errors import StartupError
from jserve.version import __version__

_PATH = "/v1/traces"
_CLOSE_S = 2.0


class Tracer:
    """Sends spans to `endpoint`, an OTLP collector over HTTP; a URL without a path means /v1/traces there.

    Raises StartupError where OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, model_name: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise StartupError(
                "--otlp-traces-endpoint needs OpenTelemetry, which is not installed: pip install 'jserve[otel]'"
            ) from error
        url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + _PATH
        # The environment (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) wins over these.
        ours = Resource({SERVICE_NAME: "jserve", SERVICE_VERSION: __version__})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("jserve", __version__)
        self._extract: Any = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)
        self._model_name = model_name

    def record(self, call: Call, status: int, ended: float) -> None:
        """Send the span of a call that is over at `ended` (`time.time()`), if it reached the engine."""
        if not call.lives:
            return
        span = self._tracer.start_span(
            "llm_request",
            context=self._extract(call.trace_headers),
            kind=self._kind,
            start_time=_nanoseconds(call.arrived),
            attributes=self._attributes(call, status, ended),
        )
        for name, moment in _events(call):
            span.add_event(name, timestamp=_nanoseconds(moment))
        if status >= 400:
            span.set_status(self._failed)
        span.end(_nanoseconds(ended))

    def close(self) -> None:
        """Send what is left; a collector that does not answer is given up after a moment. Blocks meanwhile."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _attributes(self, call: Call, status: int, ended: float) -> dict[str, Any]:
        first = call.lives[0]
        reasons = dict.fromkeys(life.finish_reason for life in call.lives if life.finish_reason)
        attributes: dict[str, Any] = {
            "gen_ai.request.id": first.request_id.partition("#")[0],
            "gen_ai.request.n": len(call.lives),
            "gen_ai.request.max_tokens": first.max_tokens,
            "gen_ai.response.model": self._model_name,
            "gen_ai.response.finish_reasons": list(reasons),
            "gen_ai.usage.num_sequences": len(call.lives),
            "gen_ai.usage.prompt_tokens": call.num_prompt,
            "gen_ai.usage.completion_tokens": call.num_output,
            "gen_ai.usage.cached_tokens": call.num_cached,
            "gen_ai.latency.e2e": ended - call.arrived,
            "http.route": call.path,
            "http.response.status_code": status,
            "jserve.request_id": call.request_id,
            "jserve.key_id": call.key.id,
        }
        started = [life for life in call.lives if life.first_token]
        if started:
            scheduled = min(life.scheduled or life.arrived for life in started)
            last = max(life.last_token for life in started)
            attributes |= {
                "gen_ai.latency.time_in_queue": scheduled - first.arrived,
                "gen_ai.latency.time_to_first_token": call.first_token - call.arrived,
                "gen_ai.latency.time_in_model_prefill": call.first_token - scheduled,
                "gen_ai.latency.time_in_model_decode": last - call.first_token,
                "gen_ai.latency.time_in_model_inference": last - scheduled,
            }
        return attributes


def _events(call: Call) -> list[tuple[str, float]]:
    """When the sequences of a call were queued, first scheduled, and gave their first and last token."""
    lives = [life for life in call.lives if life.first_token]
    events = [("queued", min(life.arrived for life in call.lives))]
    if lives:
        events.append(("scheduled", min(life.scheduled or life.arrived for life in lives)))
        events.append(("first_token", call.first_token))
        events.append(("last_token", max(life.last_token for life in lives)))
    return events


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
