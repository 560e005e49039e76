"""The HTTP metrics are those of prometheus-fastapi-instrumentator, name by name and label by label."""

import re
from collections.abc import Iterable

import anyio
import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response

from jserve.api.telemetry.http_metrics import HttpMetrics

instrumentator = pytest.importorskip("prometheus_fastapi_instrumentator")

REQUESTS = [("GET", "/a", 200), ("GET", "/a", 200), ("POST", "/a", 503), ("POST", "/a", 404), ("GET", "/none", 404)]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def originals() -> Series:
    """What the library says of these requests."""
    app, registry = FastAPI(), CollectorRegistry()
    statuses = iter(status for _, path, status in REQUESTS if path == "/a")

    @app.api_route("/a", methods=["GET", "POST"])
    def answer() -> Response:
        return Response("body", next(statuses))

    instrumentator.Instrumentator(registry=registry).instrument(app)

    async def send_all() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            for method, path, status in REQUESTS:
                assert (await client.request(method, path)).status_code == status

    anyio.run(send_all)
    return series_of(registry.collect())


def series_of(families: Iterable[Metric]) -> Series:
    """Samples without those that are about time, which differ."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not re.search("_created$|_sum$|_bucket$", sample.name)
    }


def test_names_labels_and_counts_are_those_of_the_library(originals: Series) -> None:
    metrics = HttpMetrics()
    for method, path, status in REQUESTS:
        handler = path if path == "/a" else "none"
        metrics.observe(handler, method, status, seconds=0.01, request_bytes=0, response_bytes=4)
    assert len(originals) > 8
    assert series_of(metrics.collect()) == originals


def test_parsers_read_the_same_families(originals: Series) -> None:
    assert {name for name, _ in originals} == {
        "http_requests_total", "http_request_size_bytes_count", "http_response_size_bytes_count",
        "http_request_duration_seconds_count", "http_request_duration_highr_seconds_count",
    }  # fmt: skip
    assert list(text_string_to_metric_families("# TYPE http_requests counter\nhttp_requests_total 1\n"))
