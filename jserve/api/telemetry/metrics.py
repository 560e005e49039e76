"""Prometheus metrics: vLLM's names, so that dashboards and autoscalers work unchanged, and jserve's own.

Gauges and the engine's counters come from the newest `EngineStats`; the rest from the lives of requests.
Counters of an engine that was restarted go on from where its predecessor stopped.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from jserve.api.life import RequestLife
from jserve.api.supervisor.client import EngineClient, EngineStatus
from jserve.api.telemetry.histogram import Histogram, one_two_five
from jserve.api.telemetry.http_metrics import HttpMetrics
from jserve.protocol import EngineCompiled, EngineStats, TokenDelta

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_BETWEEN_TOKENS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
_REQUEST_S = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_DEFAULT_CONTEXT = 131_072
"""Size buckets go this far; the context's length is not known when metrics start."""

_ENGINE_COUNTERS = {
    "vllm:prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the prefix cache."),
    "vllm:num_preemptions": ("num_preemptions", "Sequences that lost their pages and were computed again."),
    "vllm:spec_decode_num_drafts": ("num_drafts", "Drafts that were checked."),
    "vllm:spec_decode_num_draft_tokens": ("num_draft_tokens", "Tokens that were drafted."),
    "vllm:spec_decode_num_accepted_tokens": ("num_accepted_tokens", "Drafted tokens that were accepted."),
    "jserve:steps": ("num_steps", "Steps that the engine has run."),
    "jserve:prompt_tokens_computed": ("prompt_tokens_computed", "Prompt tokens that were computed."),
    "jserve:recompiles_after_ready": ("compiles_after_ready", "Compiles after ready; above 0 is a defect."),
}


class Metrics(Collector):
    """Everything that `/metrics` shows of one server."""

    def __init__(self, client: EngineClient, model_name: str) -> None:
        self._client = client
        self._labels = {"model_name": model_name, "engine": "0"}
        self._base: dict[str, int] = {}
        self._newest = EngineStats()
        self._accepted_base: Counter[str] = Counter()
        """Accepted drafted tokens of engines that are no more, by their place in the draft."""
        self.finished: Counter[str] = Counter()
        self.rejected = client.admission.rejected
        self.aborted: Counter[str] = Counter()
        self.rate_limited: Counter[tuple[str, str]] = Counter()
        """By id of the key and kind of the limit."""
        self.key_tokens: Counter[tuple[str, str]] = Counter()
        """By id of the key and kind: prompt (each counted once, however many choices continue it), cached, output."""
        self.http = HttpMetrics()
        self.parser_uses: Counter[tuple[str, str, str]] = Counter()
        """By mode, outcome and request type."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self._make_histograms()
        self.compiled: Counter[tuple[str, str, str]] = Counter()
        """By the kind of program, what it is for, and where it came from."""
        client.on_step = self._observe_step
        client.on_compiled = self._observe_compiled

    def _make_histograms(self) -> None:
        sizes = one_two_five(_DEFAULT_CONTEXT)
        make = Histogram
        self.first_token = make("vllm:time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN_S)
        self.between_tokens = make(
            "vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", _BETWEEN_TOKENS_S
        )
        self.per_token = make(
            "vllm:request_time_per_output_token_seconds",
            "Mean of a sequence, without the first.",
            _BETWEEN_TOKENS_S,
        )
        self.latency = make("vllm:e2e_request_latency_seconds", "Arrival to last token.", _REQUEST_S)
        self.queue = make("vllm:request_queue_time_seconds", "Arrival to first step.", _REQUEST_S)
        self.inference = make("vllm:request_inference_time_seconds", "First step to last token.", _REQUEST_S)
        self.prefill = make("vllm:request_prefill_time_seconds", "First step to first token.", _REQUEST_S)
        self.decode = make("vllm:request_decode_time_seconds", "First to last token.", _REQUEST_S)
        self.prompt_size = make("vllm:request_prompt_tokens", "Prompt tokens of a request.", sizes)
        self.output_size = make("vllm:request_generation_tokens", "Tokens generated for a sequence.", sizes)
        self.max_size = make("vllm:request_params_max_tokens", "max_tokens after clamping.", sizes)
        self.choices = make("vllm:request_params_n", "Choices asked for.", (1, 2, 5, 10, 20))
        self.computed_size = make(
            "vllm:request_prefill_kv_computed_tokens", "Prompt tokens of a sequence that were computed.", sizes
        )
        self.longest_size = make(
            "vllm:request_max_num_generation_tokens", "Tokens of a request's longest choice.", sizes
        )
        self.preemptions = make("vllm:request_num_preemptions", "Preemptions of a sequence.", (1, 2, 3, 4, 5, 10, 20))
        self.step_size = make("vllm:iteration_tokens_total", "Tokens of a step.", _STEP_TOKENS)

    def observe_delta(self, life: RequestLife, delta: TokenDelta, now: float) -> None:
        """Tokens of a sequence arrived. Called once per sequence and step, so it does little."""
        count = len(delta.token_ids)
        self.generation_tokens += count
        if not life.first_token:
            self.prompt_tokens += life.num_prompt
            self.cached_tokens += delta.num_cached_tokens
        gap = life.observe(delta, now)
        if gap is not None and count:
            self.between_tokens.observe(gap / count, count)

    def observe_life(self, life: RequestLife) -> None:
        """A sequence ended, however it ended."""
        self.finished[life.finish_reason] += 1
        self.key_tokens[life.key_id, "output"] += life.num_output
        self.key_tokens[life.key_id, "cached"] += life.num_cached
        self.prompt_size.observe(life.num_prompt)
        self.output_size.observe(life.num_output)
        self.max_size.observe(life.max_tokens)
        self.preemptions.observe(life.num_preemptions)
        self.latency.observe(life.ended - life.arrived)
        if not life.first_token:
            return
        self.first_token.observe(life.first_token - life.arrived)
        self.computed_size.observe(max(0, life.num_prompt - life.num_cached))
        decode = life.last_token - life.first_token
        self.decode.observe(decode)
        if life.num_output > 1:
            self.per_token.observe(decode / (life.num_output - 1))
        if life.scheduled:
            self.queue.observe(max(0.0, life.scheduled - life.arrived))
            self.inference.observe(life.last_token - life.scheduled)
            self.prefill.observe(life.first_token - life.scheduled)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """All families, as prometheus_client wants them."""
        yield from self._gauges()
        yield from self._counters()
        yield from self.http.collect()
        for value in list(vars(self).values()):
            if isinstance(value, Histogram):
                yield value.family(self._labels)
        # The name that inter_token_latency had before, which older dashboards read.
        old = self.between_tokens.family(self._labels)
        renamed = "vllm:time_per_output_token_seconds"
        old.samples = [s._replace(name=s.name.replace(old.name, renamed)) for s in old.samples]
        old.name = renamed
        yield old

    def _observe_step(self, stats: EngineStats) -> None:
        if stats.num_steps < self._newest.num_steps:  # A new engine counts from zero.
            for field, _ in _ENGINE_COUNTERS.values():
                self._base[field] = self._base.get(field, 0) + getattr(self._newest, field)
            self._accepted_base += _by_place(self._newest)
        if stats.num_steps != self._newest.num_steps and stats.step_tokens:
            self.step_size.observe(stats.step_tokens)
        self._newest = stats

    def _observe_compiled(self, message: EngineCompiled) -> None:
        for name, source in message.programs:
            kind, _, bucket = name.partition(" ")
            self.compiled[kind, bucket, source] += 1

    def _gauges(self) -> Iterator[Metric]:
        stats = self._client.stats
        usage = stats.num_pages_used / stats.num_pages if stats.num_pages else 0.0
        running = self._client.state is EngineStatus.READY
        sum_waiting = stats.num_waiting + stats.num_deferred
        yield self._gauge("vllm:num_requests_running", "Sequences that hold a slot.", stats.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences that wait for one.", sum_waiting)
        by_reason = {"capacity": stats.num_waiting, "deferred": stats.num_deferred}
        yield self._family(
            GaugeMetricFamily,
            "vllm:num_requests_waiting_by_reason",
            "Waiting, by reason.",
            "reason",
            by_reason,
        )
        yield self._gauge("vllm:kv_cache_usage_perc", "Used share of the KV pages, 0 to 1.", usage)
        yield self._gauge("vllm:gpu_cache_usage_perc", "Old name of vllm:kv_cache_usage_perc.", usage)
        yield self._gauge("jserve:engine_up", "1 while the engine is ready.", float(running))
        sleep = {"awake": 1, "weights_offloaded": 0, "discard_all": 0}  # It has no sleep mode.
        yield self._family(
            GaugeMetricFamily, "vllm:engine_sleep_state", "1 for the engine's state.", "sleep_state", sleep
        )
        padded = stats.padded_tokens
        waste = 1 - stats.step_tokens / padded if padded else 0.0
        yield self._gauge("jserve:bucket_padding_waste_ratio", "Share of padding in the newest step.", waste)
        age = max(0.0, time.time() - stats.last_step_at) if stats.last_step_at else 0.0
        yield self._gauge("jserve:last_step_age_seconds", "Seconds since the newest step; 0 before it.", age)
        if (programs := self._client.programs) is not None:
            by_state = {"ready": programs.ready, "pending": programs.pending, "failed": programs.failed}
            yield self._family(
                GaugeMetricFamily, "jserve:programs", "Programs, by state; pending ones are compiled behind ready.",
                "state", by_state,
            )  # fmt: skip
        if (ready := self._client.ready) is not None:
            yield self._family(
                GaugeMetricFamily, "jserve:startup_seconds", "Length of the start, by phase.", "phase",
                ready.startup_seconds,
            )  # fmt: skip
            info = GaugeMetricFamily(
                "vllm:cache_config_info", "Configuration of the KV cache.",
                labels=[*self._labels, "block_size", "num_gpu_blocks", *ready.info],
            )  # fmt: skip
            sizes = (str(ready.page_size), str(ready.num_pages))
            info.add_metric([*self._labels.values(), *sizes, *ready.info.values()], 1)
            yield info

    def _counters(self) -> Iterator[Metric]:
        for name, (field, help_text) in _ENGINE_COUNTERS.items():
            yield self._counter(name, help_text, self._base.get(field, 0) + getattr(self._newest, field))
        if accepted := self._accepted_base + _by_place(self._newest):
            name = "vllm:spec_decode_num_accepted_tokens_per_pos"
            help_text = "Drafted tokens that were accepted, by their place in the draft."
            yield self._family(CounterMetricFamily, name, help_text, "position", accepted)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens taken in.", self.prompt_tokens)
        yield self._counter(
            "vllm:prompt_tokens_cached", "Prompt tokens taken from the prefix cache.", self.cached_tokens
        )
        hits = {"local_cache_hit": self.cached_tokens, "external_kv_transfer": 0}
        by_source = {"local_compute": self.prompt_tokens - self.cached_tokens, **hits}
        by_place = {"device": self.cached_tokens}
        for name, values in (("prompt_tokens_by_source", by_source), ("prompt_tokens_cached_by_source", by_place)):
            yield self._family(CounterMetricFamily, f"vllm:{name}", "Prompt tokens, by source.", "source", values)
        for name in ("queries", "hits"):
            yield self._counter(f"vllm:external_prefix_cache_{name}", "Always 0: there is no external cache.", 0)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", self.generation_tokens)
        yield self._counter("jserve:engine_restarts", "Engines started again.", self._client.num_restarts)
        finished = {reason: self.finished[reason] for reason in _FINISH_REASONS}
        yield self._family(CounterMetricFamily, "vllm:request_success", "Ended sequences.", "finished_reason", finished)
        yield self._family(
            CounterMetricFamily,
            "vllm:admission_rejections",
            "Requests refused for capacity.",
            "reason",
            self.rejected,
        )
        uses = CounterMetricFamily(
            "vllm:tool_call_parser_invocations",
            "Choices in which tool calls were looked for.",
            labels=[*self._labels, "mode", "outcome", "request_type"],
        )
        for use, count in sorted(self.parser_uses.items()):
            uses.add_metric([*self._labels.values(), *use], count)
        yield uses
        yield self._family(
            CounterMetricFamily, "jserve:aborted_requests", "Requests cut short.", "reason", self.aborted
        )
        yield self._labelled(
            "jserve:ratelimit_rejections", "Requests above a key's limit.", ("key_id", "kind"), self.rate_limited
        )
        yield self._labelled("jserve:key_tokens", "Tokens of each key, for bills.", ("key_id", "kind"), self.key_tokens)
        yield self._labelled(
            "jserve:compile", "Programs made ready, by source.", ("fn", "bucket", "source"), self.compiled
        )

    def _labelled(self, name: str, help_text: str, labels: tuple[str, ...], values: Mapping[Any, int]) -> Metric:
        family = CounterMetricFamily(name, help_text, labels=[*self._labels, *labels])
        for key, value in sorted(values.items()):
            family.add_metric([*self._labels.values(), *key], value)
        return family

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, help_text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, help_text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _family(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        help_text: str,
        label: str,
        values: Mapping[str, float],
    ) -> Metric:
        family = kind(name, help_text, labels=[*self._labels, label])
        for key, value in values.items():
            family.add_metric([*self._labels.values(), key], value)
        return family


def _by_place(stats: EngineStats) -> Counter[str]:
    return Counter({str(place): count for place, count in enumerate(stats.accepted_per_position)})
