"""/metrics: names that dashboards know, and values that follow what happened."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jserve.api.histogram import Histogram, one_two_five
from tests.api.live_server import LiveServer, StartServer

NAMES = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:time_per_output_token_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_count",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:request_queue_time_seconds_count",
    "vllm:request_inference_time_seconds_count",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_count",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_params_max_tokens_bucket",
    "vllm:request_params_n_bucket",
    "vllm:request_num_preemptions_bucket",
    "vllm:iteration_tokens_total_count",
    "vllm:cache_config_info",
    "jserve:startup_seconds",
    "jserve:recompiles_after_ready_total",
    "jserve:last_step_age_seconds",
    "jserve:bucket_padding_waste_ratio",
    "http_requests_total",
    "process_resident_memory_bytes",
]


def test_names_are_vllms(server: LiveServer) -> None:
    server.complete("abc")
    response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        sample.name: sample for family in text_string_to_metric_families(response.text) for sample in family.samples
    }
    missing = [name for name in NAMES if name not in samples]
    assert not missing
    assert samples["vllm:generation_tokens_total"].labels == {"model_name": "tiny", "engine": "0"}


def test_values_follow_requests(start_server: StartServer) -> None:
    live = start_server(enable_prompt_tokens_details=True)
    body = live.complete("abcdef", max_tokens=5)
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    live.complete("abcdef", max_tokens=5, stop="c")
    assert live.metric("vllm:prompt_tokens_total") == 12
    assert live.metric("vllm:prompt_tokens_cached_total") == 6
    assert live.metric("vllm:generation_tokens_total") == 5 + 3
    assert live.metric("vllm:request_success_total", finished_reason="length") == 1
    assert live.metric("vllm:request_success_total", finished_reason="stop") == 1
    assert live.metric("vllm:e2e_request_latency_seconds_count") == 2
    assert live.metric("vllm:time_to_first_token_seconds_count") == 2
    assert live.metric("vllm:inter_token_latency_seconds_count") == 4 + 2
    assert live.metric("http_requests_total", handler="/v1/completions", status="200") == 2
    live.http.post("/v1/completions", json={})
    assert live.metric("http_requests_total", handler="/v1/completions", status="400") == 1


def test_engine_counters_survive_a_restart(start_server: StartServer) -> None:
    live = start_server()
    live.complete("abcdef", max_tokens=50)
    before = live.metric("jserve:steps_total")
    assert before >= 50
    live.server.context.client._process.kill()  # type: ignore[union-attr]
    live.wait_for(lambda: live.metric("jserve:engine_restarts_total") == 1)
    live.wait_until_ready()
    live.complete("abcdef", max_tokens=10)
    assert live.metric("jserve:steps_total") >= before + 10


def test_histogram_counts_each_value_in_its_bucket() -> None:
    histogram = Histogram("h", "help", (1, 2, 5))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    histogram.observe(2.0, count=3)
    samples = {s.labels.get("le", s.name): s.value for s in histogram.family({"a": "b"}).samples}
    assert samples == {"1.0": 2, "2.0": 6, "5.0": 6, "+Inf": 7, "h_count": 7, "h_sum": pytest.approx(18.0)}


def test_one_two_five() -> None:
    assert one_two_five(60) == [1, 2, 5, 10, 20, 50]
