"""/metrics: names that dashboards know, and values that follow what happened."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jserve.api.access.limits import Limit, Limits
from jserve.api.telemetry.histogram import Histogram, one_two_five
from jserve.api.telemetry.metrics import Metrics
from jserve.protocol import EngineStats
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
    assert live.metric("http_requests_total", handler="/v1/completions", status="2xx") == 2
    live.http.post("/v1/completions", json={})
    assert live.metric("http_requests_total", handler="/v1/completions", status="4xx") == 1


def test_engine_counters_survive_a_restart(start_server: StartServer) -> None:
    live = start_server()
    live.complete("abcdef", max_tokens=50)
    before = live.metric("jserve:steps_total")
    assert before >= 50
    live.server.context.client._process.kill()  # type: ignore[union-attr]
    live.wait_for(lambda: live.metric("jserve:engine_restarts_total") == 1)
    live.wait_until_ready()
    assert live.metric("jserve:compile_total", fn="step", bucket="8", source="cold") == 2, "each engine compiles"
    live.complete("abcdef", max_tokens=10)
    assert live.metric("jserve:steps_total") >= before + 10


def test_accepted_drafts_are_counted_by_place_and_go_on_after_a_restart(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = server.server.context.client
    for name in ("on_step", "on_compiled"):
        monkeypatch.setattr(client, name, getattr(client, name))
    metrics = Metrics(client, "m")
    for stats in (
        EngineStats(num_steps=9, num_accepted_tokens=3, accepted_per_position=[2, 1]),
        EngineStats(num_steps=1, num_accepted_tokens=1, accepted_per_position=[1, 0]),
    ):
        metrics._observe_step(stats)
    families = {family.name: family for family in metrics.collect()}
    samples = families["vllm:spec_decode_num_accepted_tokens_per_pos"].samples
    assert {sample.labels["position"]: sample.value for sample in samples} == {"0": 3, "1": 1}
    assert families["vllm:spec_decode_num_accepted_tokens"].samples[0].value == 4


def test_histogram_counts_each_value_in_its_bucket() -> None:
    histogram = Histogram("h", "help", (1, 2, 5))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    histogram.observe(2.0, count=3)
    samples = {s.labels.get("le", s.name): s.value for s in histogram.family({"a": "b"}).samples}
    assert samples == {"1.0": 2, "2.0": 6, "5.0": 6, "+Inf": 7, "h_count": 7, "h_sum": pytest.approx(18.0)}


def test_one_two_five() -> None:
    assert one_two_five(60) == [1, 2, 5, 10, 20, 50]


BOARD = """
vllm:num_requests_running vllm:num_requests_waiting vllm:num_requests_waiting_by_reason{reason}
vllm:kv_cache_usage_perc vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total
vllm:external_prefix_cache_queries_total vllm:external_prefix_cache_hits_total vllm:num_preemptions_total
vllm:prompt_tokens_total vllm:generation_tokens_total vllm:prompt_tokens_by_source_total{source}
vllm:prompt_tokens_cached_total vllm:prompt_tokens_cached_by_source_total{source}
vllm:request_success_total{finished_reason} vllm:admission_rejections_total{reason}
vllm:time_to_first_token_seconds_bucket{le} vllm:inter_token_latency_seconds_bucket{le}
vllm:request_time_per_output_token_seconds_sum vllm:e2e_request_latency_seconds_bucket
vllm:request_queue_time_seconds_sum vllm:request_inference_time_seconds_sum vllm:request_prefill_time_seconds_sum
vllm:request_decode_time_seconds_sum vllm:request_prompt_tokens_bucket{le} vllm:request_generation_tokens_bucket{le}
vllm:request_max_num_generation_tokens_bucket{le} vllm:request_params_max_tokens_bucket{le}
vllm:request_params_n_bucket{le} vllm:request_prefill_kv_computed_tokens_bucket{le}
vllm:request_num_preemptions_bucket{le} vllm:iteration_tokens_total_count
vllm:cache_config_info{block_size,num_gpu_blocks} vllm:engine_sleep_state{sleep_state} jserve:startup_seconds{phase}
jserve:recompiles_after_ready_total jserve:last_step_age_seconds jserve:bucket_padding_waste_ratio
jserve:aborted_requests_total{reason} jserve:compile_total{fn,bucket,source} jserve:programs{state}
jserve:ratelimit_rejections_total{key_id,kind} jserve:key_tokens_total{key_id,kind}
http_requests_total{handler,method,status}
http_request_duration_seconds_bucket{handler,le} http_request_duration_highr_seconds_bucket{le}
http_request_size_bytes_sum{handler} http_response_size_bytes_count{handler} process_resident_memory_bytes
process_cpu_seconds_total python_gc_collections_total{generation}
"""


def test_what_boards_ask_for_is_there_and_parses(start_server: StartServer) -> None:
    limits = Limits(Limit(requests_per_minute=2))
    options = ("--step-ms", "5", "--max-num-seqs", "1")
    live = start_server(*options, max_queued_requests=0, limits=limits, max_model_len=40_000)
    live.server.context.accounts._clock = lambda: 0.0
    body = {"prompt": "ab", "max_tokens": 30_000, "stream": True}
    with live.http.stream("POST", "/v1/completions", json=body) as first:
        lines = first.iter_lines()
        next(lines)
        for status in (503, 429):
            assert live.http.post("/v1/completions", json={"prompt": "ab"}).status_code == status
    live.wait_for(lambda: live.metric("jserve:aborted_requests_total", reason="client disconnected") == 1)
    text = live.http.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a family comes once"
    labels: dict[str, set[str]] = {}
    for family in families:
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        keys = [(sample.name, frozenset(sample.labels.items())) for sample in family.samples]
        assert len(set(keys)) == len(keys), "a series comes once"
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    for wanted in BOARD.split():
        name, _, needed = wanted.rstrip("}").partition("{")
        assert set(filter(None, needed.split(","))) <= labels.get(name, {"absent"}), wanted
        if name.startswith(("vllm:", "jserve:")):
            assert {"model_name", "engine"} <= labels[name], name
    openmetrics = live.http.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.is_success


def test_buckets_are_vllms(server: LiveServer) -> None:
    def bounds(name: str) -> list[str]:
        pattern = rf'^{name}_bucket{{.*le="([^"]+)".*}} '
        return re.findall(pattern, server.http.get("/metrics").text, re.MULTILINE)

    assert bounds("vllm:time_to_first_token_seconds")[:3] == ["0.001", "0.005", "0.01"]
    assert bounds("vllm:time_to_first_token_seconds")[-3:] == ["640.0", "2560.0", "+Inf"]
    assert bounds("vllm:e2e_request_latency_seconds")[:2] == ["0.3", "0.5"]
    assert bounds("vllm:request_params_n") == ["1.0", "2.0", "5.0", "10.0", "20.0", "+Inf"]


def test_sizes_and_sources_follow_requests(start_server: StartServer) -> None:
    live = start_server()
    body = {"prompt": "abcdef", "max_tokens": 5, "n": 2, "temperature": 1}
    answer = live.http.post("/v1/completions", json=body)
    assert live.metric("vllm:prompt_tokens_by_source_total", source="local_compute") == 2 * (6 - 3)
    assert live.metric("vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 2 * 3
    assert live.metric("vllm:request_prefill_kv_computed_tokens_sum") == 2 * (6 - 3)
    assert live.metric("vllm:request_max_num_generation_tokens_count") == 1
    assert live.metric("vllm:request_max_num_generation_tokens_sum") == 5
    handler = {"handler": "/v1/completions"}
    assert live.metric("http_response_size_bytes_sum", **handler) == len(answer.content)
    assert live.metric("http_request_size_bytes_sum", **handler) == len(answer.request.content)
    assert live.metric("http_request_duration_seconds_count", **handler) == 1


def test_paths_and_methods_of_clients_make_no_series(start_server: StartServer) -> None:
    live = start_server(api_keys=("one",))
    for number in range(20):
        live.http.get(f"/no/{number}")
        live.http.get(f"/v1/models/x{number}", headers={"x-api-key": "one"})
        live.http.request(("PROPFIND", "MKCOL", "LOCK")[number % 3], "/v1/models")
    headers = {"x-api-key": "one"}
    lines = live.http.get("/metrics", headers=headers).text.splitlines()
    series = [line for line in lines if line.startswith("http_requests_total")]
    assert len(series) == 3
    assert any('handler="/v1/models/{name:path}"' in line and line.endswith(" 20.0") for line in series)
    assert any('method="other"' in line and line.endswith(" 20.0") for line in series)


def test_load_counts_requests_that_are_being_answered(start_server: StartServer) -> None:
    live = start_server("--step-ms", "10", max_model_len=40_000)
    assert live.http.get("/load").json() == {"server_load": 0}
    body = {"prompt": "ab", "max_tokens": 30_000, "stream": True, "n": 3, "temperature": 1}
    with live.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert live.http.get("/load").json() == {"server_load": 1}
    live.wait_for(lambda: live.http.get("/load").json() == {"server_load": 0})
