"""The board of jserve, as a table of panels: `python deploy/grafana/board.py` writes dashboards/jserve.json.

Each panel is its title, its unit in Grafana's words, and expressions with their legends. `$s` stands for the labels
that choose servers, `$__rate_interval` is Grafana's.
"""

import json
from pathlib import Path
from typing import Any

BOARD = Path(__file__).parent / "dashboards" / "jserve.json"
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_SERVERS = 'job="$job",instance=~"$instance"'

Panel = tuple[str, str, list[tuple[str, str]]]


def _quantiles(metric: str, *extra: str) -> list[tuple[str, str]]:
    """Expressions of the median and the 95th and 99th hundredth of a histogram."""
    labels = ",".join(("$s", *extra))
    of = f"sum by (le) (rate({metric}_bucket{{{labels}}}[$__rate_interval]))"
    return [(f"histogram_quantile({share}, {of})", f"p{round(share * 100)}") for share in (0.5, 0.95, 0.99)]


def _rate(metric: str, by: str = "", legend: str = "", extra: str = "") -> tuple[str, str]:
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{$s{extra}}}[$__rate_interval]))", legend or (f"{{{{{by}}}}}" if by else "all")


def _share(part: str, whole: str) -> str:
    return " / ".join(f"sum (rate({metric}{{$s}}[$__rate_interval]))" for metric in (part, whole))


ROWS: dict[str, list[Panel]] = {
    "Traffic": [
        ("Answers", "reqps", [_rate("http_requests_total", "status")]),
        ("Answers by route", "reqps", [_rate("http_requests_total", "handler")]),
        (
            "Open sequences",
            "short",
            [
                ("vllm:num_requests_running{$s}", "running {{instance}}"),
                ("vllm:num_requests_waiting{$s}", "waiting {{instance}}"),
            ],
        ),
        (
            "Tokens",
            "short",
            [
                _rate("vllm:prompt_tokens_total", legend="prompt"),
                _rate("vllm:generation_tokens_total", legend="generated"),
            ],
        ),
        ("How sequences end", "reqps", [_rate("vllm:request_success_total", "finished_reason")]),
        (
            "Cut short, refused",
            "reqps",
            [
                _rate("jserve:aborted_requests_total", "reason"),
                _rate("vllm:admission_rejections_total", "reason", "refused: {{reason}}"),
            ],
        ),
    ],
    "Latency": [
        ("Time to the first token", "s", _quantiles("vllm:time_to_first_token_seconds")),
        ("Between two tokens", "s", _quantiles("vllm:inter_token_latency_seconds")),
        ("Whole request", "s", _quantiles("vllm:e2e_request_latency_seconds")),
        ("In the queue", "s", _quantiles("vllm:request_queue_time_seconds")),
        ("Tokens of prompts", "short", _quantiles("vllm:request_prompt_tokens")),
        ("Tokens of answers", "short", _quantiles("vllm:request_generation_tokens")),
    ],
    "Cache and scheduler": [
        ("KV pages in use", "percentunit", [("vllm:kv_cache_usage_perc{$s}", "{{instance}}")]),
        (
            "Prompt tokens from the cache",
            "percentunit",
            [
                (
                    _share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
                    "hits",
                )
            ],
        ),
        ("Preemptions", "short", [_rate("vllm:num_preemptions_total", "instance")]),
        ("Steps", "short", [_rate("jserve:steps_total", "instance")]),
        ("Tokens of a step", "short", _quantiles("vllm:iteration_tokens_total")),
        ("Since the newest step", "s", [("jserve:last_step_age_seconds{$s}", "{{instance}}")]),
    ],
    "Programs and processes": [
        ("Engine ready", "bool", [("jserve:engine_up{$s}", "{{instance}}")]),
        (
            "Engine restarts, compiles after ready",
            "short",
            [
                ("increase(jserve:engine_restarts_total{$s}[1h])", "restarts {{instance}}"),
                ("increase(jserve:recompiles_after_ready_total{$s}[1h])", "compiles {{instance}}"),
            ],
        ),
        ("Programs", "short", [("sum by (state) (jserve:programs{$s})", "{{state}}")]),
        ("Padding in the newest step", "percentunit", [("jserve:bucket_padding_waste_ratio{$s}", "{{instance}}")]),
        ("Memory of the HTTP process", "bytes", [("process_resident_memory_bytes{$s}", "{{instance}}")]),
        ("Descriptors of the HTTP process", "short", [("process_open_fds{$s}", "{{instance}}")]),
    ],
    "Keys": [
        ("Generated tokens by key", "short", [_rate("jserve:key_tokens_total", "key_id", extra=',kind="output"')]),
        ("Prompt tokens by key", "short", [_rate("jserve:key_tokens_total", "key_id", extra=',kind="prompt"')]),
        (
            "Requests above a limit",
            "reqps",
            [
                (
                    "sum by (key_id, kind) (rate(jserve:ratelimit_rejections_total{$s}[$__rate_interval]))",
                    "{{key_id}} {{kind}}",
                )
            ],
        ),
    ],
}


def board() -> dict[str, Any]:
    """The board, as Grafana 10 and newer reads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}}
        )  # fmt: skip
        top += 1
        for number, panel in enumerate(row):
            place = {"x": number % _COLUMNS * _WIDTH, "y": top + number // _COLUMNS * _HEIGHT}
            panels.append(_panel(len(panels) + 1, panel, place))
        top += -(-len(row) // _COLUMNS) * _HEIGHT
    return {
        "uid": "jserve",
        "title": "jserve",
        "tags": ["jserve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_variable("job", "label_values(jserve:engine_up, job)", multi=False),
                                _variable("instance", 'label_values(jserve:engine_up{job="$job"}, instance)')]},
        "annotations": {"list": []},
        "panels": panels,
    }  # fmt: skip


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    title, unit, expressions = panel
    source = {"type": "prometheus", "uid": "prometheus"}
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": source,
            "expr": expression.replace("$s", _SERVERS),
            "legendFormat": legend,
        }
        for index, (expression, legend) in enumerate(expressions)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {**place, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def _variable(name: str, query: str, *, multi: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "multi": multi,
        "includeAll": multi,
        "current": {"text": "All", "value": "$__all"} if multi else {},
    }


if __name__ == "__main__":
    BOARD.write_text(json.dumps(board(), indent=1) + "\n")
